//! What one client is told: events and replies, one after the other.
//!
//! Invariant: what happened before a reply was ready is told before it. So a client that has got its reply has got every
//! event of which the command, or anything before it, was the cause.

use std::rc::Rc;

use blkproof_fault::ask::Asked;
use blkproof_fault::lab::Lab;
use blkproof_fault::notice::Notice;
use futures_lite::future::yield_now;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::sync::broadcast::{self, error::TryRecvError};

use crate::events;
use crate::outbox::Outbox;
use crate::wire::{self, encode, encode_in_turns};

/// Events told before others have their turn.
const BURST: usize = 32;

type Notices = broadcast::Receiver<Rc<Notice>>;

pub(crate) struct Voice<'a> {
    lab: &'a Lab,
    me: Asked,
    outbox: &'a Outbox,
    /// What happened and was not told; none as long as the client wants to hear nothing. Whoever speaks holds it, in the
    /// order in which they came: a message that waits for room lets nobody pass.
    ears: Mutex<Option<Notices>>,
}

impl<'a> Voice<'a> {
    /// For the client that is `me`, which hears of no event yet.
    pub(crate) fn new(lab: &'a Lab, me: Asked, outbox: &'a Outbox) -> Self {
        Self { lab, me, outbox, ears: Mutex::new(None) }
    }

    /// Says something, behind every event so far.
    pub(crate) async fn say(&self, message: &Value) {
        let line = encode_in_turns(message).await;
        let mut ears = self.ears.lock().await;
        self.catch_up(ears.as_mut()).await;
        self.outbox.put(line).await;
    }

    /// Says that the client hears of events from now on, before the first of them. Answers with what rings at each.
    pub(crate) async fn hear(&self, message: &Value) -> Notices {
        let mut ears = self.ears.lock().await;
        let bell = self.lab.notices().listen();
        *ears = Some(self.lab.notices().listen());
        self.outbox.put(encode(message)).await;
        bell
    }

    /// Tells of every event so far.
    pub(crate) async fn tell(&self) {
        self.catch_up(self.ears.lock().await.as_mut()).await;
    }

    async fn catch_up(&self, notices: Option<&mut Notices>) {
        let Some(notices) = notices else { return };
        // What happens meanwhile is for the next: a reply waits for no endless row.
        let mut left = notices.len();
        let mut burst = 0_usize;
        while left > 0 {
            let event = match notices.try_recv() {
                Ok(notice) => {
                    left = left.saturating_sub(1);
                    if !events::concerns(&notice, self.me) {
                        continue;
                    }
                    events::from_notice(&notice, &self.lab.asks())
                }
                Err(TryRecvError::Lagged(count)) => {
                    left = left.saturating_sub(usize::try_from(count).unwrap_or(usize::MAX));
                    wire::event(self.lab.clock().unix(), "EVENTS_LOST", json!({ "count": count }))
                }
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            };
            self.outbox.put(encode(&event)).await;
            burst = burst.wrapping_add(1);
            if burst.is_multiple_of(BURST) {
                yield_now().await;
            }
        }
    }
}
