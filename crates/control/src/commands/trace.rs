//! Commands about traces.

use std::rc::Rc;

use blkproof_fault::trace::Trace;
use serde_json::Value;

use super::{Context, done, nodes};
use crate::arguments::Arguments;
use crate::error::Error;

pub(crate) async fn start(context: &Context, arguments: Arguments) -> Result<Value, Error> {
    each(context, arguments, Trace::start)
}

pub(crate) async fn stop(context: &Context, arguments: Arguments) -> Result<Value, Error> {
    each(context, arguments, Trace::stop)
}

fn each(context: &Context, mut arguments: Arguments, does: fn(&Trace)) -> Result<Value, Error> {
    for (_, trace) in nodes::some::<Rc<Trace>>(context, &mut arguments)? {
        does(&trace);
    }
    done()
}
