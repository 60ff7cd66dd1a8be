//! Commands about write logs.

use blkproof_fault::log_writes::node::WriteLog;
use serde_json::{Value, json};

use super::{Context, nodes};
use crate::arguments::Arguments;
use crate::error::Error;

pub(crate) async fn mark(context: &Context, mut arguments: Arguments) -> Result<Value, Error> {
    let (_, log) = nodes::one::<WriteLog>(context, &mut arguments)?;
    let text = arguments.take_text("text").unwrap_or_default();
    log.mark(&text).await.map_err(|error| Error::generic(error.to_string()))?;
    Ok(json!({ "entries": log.entries() }))
}
