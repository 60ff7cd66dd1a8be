//! One thread, one runtime: a block graph lives where it was opened.

use std::future::Future;

/// Runs `main` on a single-threaded runtime whose local tasks may hold a block graph.
pub(crate) fn block_on<T>(main: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    Ok(local.block_on(&runtime, main))
}
