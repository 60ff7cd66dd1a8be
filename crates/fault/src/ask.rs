//! Questions to programs outside: a request is parked until somebody says what becomes of it.
//!
//! Whoever wants to be asked registers, for everything, for a node or for a rule; the most exact registration is asked,
//! the newest of equal ones. The question itself travels as a notice ([`What::Ask`](crate::notice::What::Ask)) that names
//! whom it is for. A question is answered once. Where nobody is registered, where the one who was asked is gone, and when
//! the time is up, the rule's default is the answer: no request waits for a client that does not care.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use tokio::sync::oneshot;

use crate::rule::Failure;

/// What becomes of a request.
#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    /// It goes on as if nobody had asked.
    Proceed,
    /// It goes on with this data instead: a write writes it, a read returns it. As many bytes as the request has.
    Data(Vec<u8>),
    /// It fails.
    Fail(Failure),
    /// It succeeds, and nothing is done.
    Succeed,
}

/// Somebody who answers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Asked(pub u64);

/// An answer that can not be taken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AnswerError {
    /// No such question, or not any more.
    #[error("question {0} is not open: it was answered, its time was up, or its request is gone")]
    NotOpen(u64),
    /// The data does not fit.
    #[error("{got} bytes of data for a request of {want}")]
    Length {
        /// Bytes the request has.
        want: u64,
        /// Bytes of the answer.
        got: u64,
    },
    /// A request without data.
    #[error("a {0} has no data to replace")]
    NoData(&'static str),
}

#[derive(Debug)]
struct Registration {
    who: Asked,
    node: Option<Rc<str>>,
    rule: Option<Rc<str>>,
}

#[derive(Debug)]
struct Open {
    to: Asked,
    /// Bytes an answer with data has to have; an error word for requests without.
    data: Result<u64, &'static str>,
    /// The data of a write, or what a read would return, until it has been looked at.
    shown: Option<Rc<[u8]>>,
    answer: oneshot::Sender<Answer>,
}

/// Everybody who answers, and what is open.
#[derive(Debug, Default)]
pub struct Asks {
    next_asked: Cell<u64>,
    next_question: Cell<u64>,
    registrations: RefCell<Vec<Registration>>,
    open: RefCell<BTreeMap<u64, Open>>,
}

/// A question that waits. Dropping it closes it.
#[derive(Debug)]
pub struct Question<'a> {
    asks: &'a Asks,
    /// Its number, for the answer.
    pub number: u64,
    /// Who is asked.
    pub to: Asked,
    answer: oneshot::Receiver<Answer>,
}

impl Asks {
    /// Somebody new, who has to [`register`](Self::register) to be asked.
    pub fn newcomer(&self) -> Asked {
        let number = self.next_asked.get();
        self.next_asked.set(number.wrapping_add(1));
        Asked(number)
    }

    /// Has `who` asked from now on, about one node and one rule, or any.
    pub fn register(&self, who: Asked, node: Option<Rc<str>>, rule: Option<Rc<str>>) {
        self.unregister(who, node.as_deref(), rule.as_deref());
        self.registrations.borrow_mut().push(Registration { who, node, rule });
    }

    /// Takes one registration back; `false` if there is none like it.
    pub fn unregister(&self, who: Asked, node: Option<&str>, rule: Option<&str>) -> bool {
        let mut registrations = self.registrations.borrow_mut();
        let before = registrations.len();
        registrations.retain(|one| one.who != who || one.node.as_deref() != node || one.rule.as_deref() != rule);
        registrations.len() < before
    }

    /// Forgets somebody; what they were asked gets its default.
    pub fn gone(&self, who: Asked) {
        self.registrations.borrow_mut().retain(|one| one.who != who);
        // Dropping the sender is the answer.
        self.open.borrow_mut().retain(|_, open| open.to != who);
    }

    /// Opens a question about a request at `node`; `None` if nobody wants to be asked. `data`: the bytes an answer may
    /// replace, or what the request is if it has none.
    pub fn ask(&self, node: &str, rule: &str, data: Result<u64, &'static str>) -> Option<Question<'_>> {
        let to = {
            let registrations = self.registrations.borrow();
            let fits = |one: &&Registration| {
                one.node.as_deref().is_none_or(|wanted| wanted == node)
                    && one.rule.as_deref().is_none_or(|wanted| wanted == rule)
            };
            let exact = |one: &&Registration| (one.rule.is_some(), one.node.is_some());
            // The last of equal ones is the newest.
            registrations.iter().filter(fits).max_by_key(exact)?.who
        };
        let number = self.next_question.get();
        self.next_question.set(number.wrapping_add(1));
        let (sender, answer) = oneshot::channel();
        self.open.borrow_mut().insert(number, Open { to, data, shown: None, answer: sender });
        Some(Question { asks: self, number, to, answer })
    }

    /// Answers a question.
    ///
    /// # Errors
    /// If it is not open, or the answer does not fit; it then stays open.
    pub fn answer(&self, number: u64, answer: Answer) -> Result<(), AnswerError> {
        let mut open = self.open.borrow_mut();
        let question = open.get(&number).ok_or(AnswerError::NotOpen(number))?;
        if let Answer::Data(data) = &answer {
            let want = question.data.map_err(AnswerError::NoData)?;
            let got = data.len() as u64;
            if got != want {
                return Err(AnswerError::Length { want, got });
            }
        }
        let question = open.remove(&number).ok_or(AnswerError::NotOpen(number))?;
        question.answer.send(answer).map_err(|_| AnswerError::NotOpen(number))
    }

    /// Takes the data that question `number` shows; `None` if it shows none, is not open any more, or was not put to `who`.
    pub fn take_shown(&self, number: u64, who: Asked) -> Option<Rc<[u8]>> {
        self.open.borrow_mut().get_mut(&number).filter(|open| open.to == who)?.shown.take()
    }

    /// Questions that wait.
    pub fn open(&self) -> usize {
        self.open.borrow().len()
    }
}

impl Question<'_> {
    /// Shows data to whoever is asked.
    pub fn show(&self, data: Rc<[u8]>) {
        if let Some(open) = self.asks.open.borrow_mut().get_mut(&self.number) {
            open.shown = Some(data);
        }
    }

    /// Waits for the answer; `None` if whoever was asked is gone.
    pub async fn answered(&mut self) -> Option<Answer> {
        (&mut self.answer).await.ok()
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.asks.open.borrow_mut().remove(&self.number);
    }
}
