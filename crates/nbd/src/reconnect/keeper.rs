//! The task that keeps a connection.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::time::Duration;

use blkproof_block::LocalBoxFuture;
use futures_lite::future::or;
use tokio::sync::oneshot;

use super::Inner;
use crate::client::Connection;
use crate::connect::{Attempts, Connect, Connected, Target, Transport};

/// How long a server that is shutting down may take to answer what is in flight.
const GRACE: Duration = Duration::from_secs(1);

/// Everything the task needs.
pub(super) struct Keeper<C> {
    /// Weak: the node ends when its last user lets go of it, whatever happens here.
    pub(super) home: Weak<Inner>,
    pub(super) connect: Rc<C>,
    pub(super) target: Target,
    /// How long requests wait.
    pub(super) delay: Duration,
    /// Completes when the node is dropped or closed.
    pub(super) stop: oneshot::Receiver<()>,
}

/// The end of the time in which requests wait.
type Timer = Option<LocalBoxFuture<'static, ()>>;

impl<C: Connect> Keeper<C> {
    /// Moves the bytes of one connection after another.
    pub(super) async fn run(mut self, mut connection: Connection<Box<dyn Transport>>) {
        let mut timer = None;
        let mut attempts = Attempts::default();
        loop {
            let dismissal = connection.dismissal();
            let impatience = async {
                dismissal.wait().await;
                self.connect.sleep(GRACE).await;
                dismissal.leave();
            };
            // A connection whose client is gone says goodbye and ends by itself.
            with_timer(&mut timer, &self.home, or(connection, impatience)).await;
            let Some(loss) = self.home.upgrade().and_then(|home| home.lost()) else { return };
            if loss.answered {
                attempts = Attempts::default();
            }
            if loss.begins {
                timer = Some(self.connect.sleep(self.delay));
            }
            let Some((client, next)) = self.again(&mut timer, &mut attempts).await else { return };
            connection = next;
            let welcome = self.home.upgrade().is_some_and(|home| home.connected(client));
            if !welcome {
                // The client is dropped: what is left is to say goodbye.
                return or(connection, self.connect.sleep(GRACE)).await;
            }
        }
    }

    async fn again(&mut self, timer: &mut Timer, attempts: &mut Attempts) -> Option<Connected> {
        let Self { home, connect, target, stop, .. } = self;
        let stopped = async {
            // An error says that the other end is dropped, which is all that ever happens to it.
            let _ = stop.await;
            None
        };
        let failed = |error: crate::connect::AttemptError| {
            if let Some(home) = home.upgrade() {
                home.attempt_failed(error.to_string());
            }
        };
        let connected = async { Some(attempts.run(&**connect, target, failed).await) };
        with_timer(timer, home, or(stopped, connected)).await
    }
}

/// Does `work`, and tells `home` when the timer ends meanwhile.
async fn with_timer<T>(timer: &mut Timer, home: &Weak<Inner>, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    poll_fn(|cx| {
        if let Some(running) = timer
            && running.as_mut().poll(cx).is_ready()
        {
            *timer = None;
            if let Some(home) = home.upgrade() {
                home.expired();
            }
        }
        work.as_mut().poll(cx)
    })
    .await
}
