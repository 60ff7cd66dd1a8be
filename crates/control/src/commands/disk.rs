//! Commands about disks that can lose their power.

use blkproof_block::BlockDevice as _;
use blkproof_fault::disk::{CutError, CutReport, Disk, DiskState, Estimate, Extent, State};
use serde_json::{Value, json};

use super::{Context, done, nodes};
use crate::arguments::Arguments;
use crate::error::{Class, Error};
use crate::host::{NewImage, OVERLAY_SECTOR};

/// Names of states that `disk-state` tells where nothing is said.
const NAMES: u64 = 16;
/// Names it tells at most.
const NAMES_MAX: u64 = 1000;

type Answer = Result<Value, Error>;

pub(crate) async fn power_cut(context: &Context, mut arguments: Arguments) -> Answer {
    let (_, disk) = nodes::one::<Disk>(context, &mut arguments)?;
    let state = arguments.take_text("state");
    let report = disk.power_cut(state.as_deref()).await.map_err(|error| refused(&error))?;
    let CutReport { cut, state, size, requests, states, lost, betrayed } = report;
    Ok(json!({
        "cut": cut,
        "state": &*state,
        "size": size,
        "requests": requests,
        "states": estimate(states),
        "lost": lost,
        "betrayed": betrayed,
        "on": disk.is_on(),
    }))
}

pub(crate) async fn power_on(context: &Context, mut arguments: Arguments) -> Answer {
    let (_, disk) = nodes::one::<Disk>(context, &mut arguments)?;
    disk.power_on().await?;
    done()
}

pub(crate) async fn state(context: &Context, mut arguments: Arguments) -> Answer {
    let (_, disk) = nodes::one::<Disk>(context, &mut arguments)?;
    let names = arguments.take_count("names").unwrap_or(NAMES).min(NAMES_MAX);
    Ok(describe(&disk.state(usize::try_from(names).unwrap_or(0))))
}

fn describe(state: &DiskState) -> Value {
    let options = &state.options;
    json!({
        "node": &*state.name,
        "on": state.on,
        "kind": options.kind.name(),
        "profile": options.profile.name(),
        "seed": options.seed,
        "size": state.size,
        "cuts": state.cuts,
        "requests": state.requests,
        "open": state.open,
        "cached": state.cached,
        "promised": state.promised,
        "states": estimate(state.states),
        "names": state.names.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

/// A number of states. Where it does not fit, `count` is the largest number and the logarithm says more.
fn estimate(states: Estimate) -> Value {
    json!({ "count": states.count, "log2": states.log2 })
}

pub(crate) async fn save(context: &Context, mut arguments: Arguments) -> Answer {
    let (_, disk) = nodes::one::<Disk>(context, &mut arguments)?;
    let state = arguments.take_text("state").unwrap_or_else(|| "all-new".to_owned());
    let file = arguments.take_text("file").unwrap_or_default();
    let backing = arguments.take_text("backing");
    let format = arguments.take_text("format");
    let format = format.as_deref().unwrap_or(if backing.is_some() { "qcow2" } else { "raw" });
    if backing.is_some() && format != "qcow2" {
        return Err(Error::generic(format!("a {format} image has no backing file; 'backing' goes with format qcow2")));
    }
    let backing_format = arguments.take_text("backing-format").unwrap_or_else(|| "raw".to_owned());
    let backing = backing.as_deref().map(|name| (name, backing_format.as_str()));
    // Before a file is made: the name may be wrong.
    let preview = disk.preview(&state).map_err(|error| refused(&error.into()))?;
    if backing.is_some() {
        whole_sectors(&preview)?;
    }
    let image = NewImage { file: &file, format, size: preview.size, backing };
    // Whatever goes wrong from here on, and if this is dropped, the file goes.
    let draft = context.host.create(image).await.map_err(Error::generic)?;
    let extent = if backing.is_some() { Extent::Overlay } else { Extent::Image };
    let saved = disk.save_state(&state, draft.node(), extent).await;
    let closed = draft.node().close().await;
    let saved = saved.map_err(|error| refused(&error))?;
    closed?;
    if backing.is_some() {
        // Requests that came after the preview.
        whole_sectors(&saved)?;
    }
    draft.keep();
    Ok(json!({ "state": saved.name.to_string(), "size": saved.size, "lost": saved.lost, "betrayed": saved.betrayed }))
}

/// An overlay without its backing file at hand can not be written in parts of sectors.
fn whole_sectors(state: &State) -> Result<(), Error> {
    let whole = |at: u64| at.is_multiple_of(OVERLAY_SECTOR) || at == state.size;
    match state.pieces.iter().find(|piece| !whole(piece.range.start) || !whole(piece.range.end)) {
        None => Ok(()),
        Some(piece) => Err(Error::generic(format!(
            "an overlay holds whole sectors of {OVERLAY_SECTOR} bytes, and {} of the state are not; save a whole image instead, \
             without 'backing'",
            piece.range
        ))),
    }
}

pub(crate) async fn fail_flushes(context: &Context, mut arguments: Arguments) -> Answer {
    let (_, disk) = nodes::one::<Disk>(context, &mut arguments)?;
    let count = arguments.take_count("count").unwrap_or(1);
    disk.fail_flushes(count).map_err(|error| Error::generic(error.to_string()))?;
    done()
}

fn refused(error: &CutError) -> Error {
    let class = if matches!(error, CutError::Off) { Class::DeviceNotActive } else { Class::GenericError };
    Error::new(class, error.to_string())
}
