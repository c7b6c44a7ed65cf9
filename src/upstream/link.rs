//! One connection to an upstream, driven by whoever uses it, and the answer's body that comes through it.
//!
//! HTTP libraries split a client connection into a sender and a driver with a channel between them. Here an exchange
//! is one value, polled by the task that serves the request: it costs no task, no wake-up between tasks and no buffer
//! while nothing moves, and it ends when the value is dropped.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep};

use super::endpoint::Endpoint;
use super::framing::Framing;
use super::head::{self, Head, Unfit};
use super::pool::Pool;
use super::wire::Wire;
use crate::deadline::now;
use crate::metrics::{Standing, UpstreamSeries};

/// Chunks up to this length are handed on whole, if they came whole.
const WHOLE: usize = 16 * 1024;

/// A connection that is idle or carries exactly one exchange.
pub struct Link {
    wire: Wire,
    /// Counted as carrying an exchange.
    active: Option<Standing>,
    /// An answer came before its request was written whole, or the upstream took no more of it: nobody knows what it will
    /// make of the rest.
    early: bool,
}

/// Why a request has no answer's head.
pub(super) enum Unanswered {
    /// The connection was gone before it took a byte: the request is as good as new.
    Untouched(String),
    /// No byte was taken and none came for too long.
    Silent {
        /// Whether the upstream had the whole request.
        worked: bool,
    },
    /// The answer broke off or is not acceptable.
    Invalid {
        /// Why, for the operator.
        detail: String,
        /// Whether the upstream had the whole request, and did not decline it.
        worked: bool,
    },
}

impl Link {
    /// Opens a connection.
    pub async fn connect(endpoint: &Endpoint) -> io::Result<Box<Link>> {
        let began = now();
        let wire = Wire::open(endpoint).await?;
        endpoint.series().connected(began.elapsed());
        Ok(Box::new(Link { wire, active: None, early: false }))
    }

    /// Sends a request and waits for the head of the answer; the connection counts as active from here on. `patience`
    /// is for an upstream that neither takes a byte nor sends one; `taken` is called when it has taken the last one.
    pub(super) async fn exchange(
        &mut self,
        series: &UpstreamSeries,
        segments: &[Bytes],
        patience: Duration,
        taken: &mut impl FnMut(),
    ) -> Result<Head, Unanswered> {
        self.active = Some(series.active());
        self.wire.begin(segments);
        let mut progress = head::Progress::default();
        let (mut checked, mut whole) = (false, false);
        let mut timer = pin!(sleep(patience));
        poll_fn(|cx| {
            // A pooled connection has to notice first what the upstream did in the meantime.
            if !std::mem::replace(&mut checked, true) && self.wire.poll_fill(cx).is_ready() {
                return Poll::Ready(Err(Unanswered::Untouched("the connection ended, or spoke unasked".into())));
            }
            if let Poll::Ready(Err(error)) = self.wire.poll_send(cx) {
                if !self.wire.touched {
                    return Poll::Ready(Err(Unanswered::Untouched(error.to_string())));
                }
                // It may have answered all the same.
                self.wire.stop_sending();
                self.early = true;
            } else if !whole && !self.wire.is_unsent() {
                whole = true;
                taken();
            }
            if let Poll::Ready(head) = self.poll_head(cx, &mut progress) {
                return Poll::Ready(head);
            }
            while timer.as_mut().poll(cx).is_ready() {
                if self.wire.moved.elapsed() >= patience {
                    return Poll::Ready(Err(Unanswered::Silent { worked: self.is_taken() }));
                }
                timer.as_mut().reset(self.wire.moved + patience);
            }
            Poll::Pending
        })
        .await
    }

    fn poll_head(&mut self, cx: &mut Context<'_>, progress: &mut head::Progress) -> Poll<Result<Head, Unanswered>> {
        let whole = self.is_taken();
        let invalid =
            |detail, declines: bool| Poll::Ready(Err(Unanswered::Invalid { detail, worked: whole && !declines }));
        loop {
            match std::task::ready!(self.wire.poll_fill(cx)) {
                Ok(0) => return invalid("the connection ended without an answer".into(), false),
                Ok(_) => {}
                // What TLS refuses never was a request: a client that lacks a certificate learns it only afterwards.
                Err(error) => return invalid(error.to_string(), error.kind() == io::ErrorKind::InvalidData),
            }
            match head::take(&mut self.wire.held, progress) {
                Ok(None) => {}
                Ok(Some(head)) => {
                    self.early |= self.wire.is_unsent();
                    return Poll::Ready(Ok(head));
                }
                Err(Unfit { what, declines }) => return invalid(what, declines),
            }
        }
    }

    /// Whether the upstream has taken the whole request.
    fn is_taken(&self) -> bool {
        !self.early && !self.wire.is_unsent()
    }

    /// The exchange is over, and another may follow.
    pub(super) fn rest(&mut self) {
        self.active = None;
        self.wire.rest();
    }

    /// Whether nothing of the last exchange is left: neither to be sent nor to be read.
    fn is_clean(&self) -> bool {
        self.is_taken() && self.wire.held.is_empty()
    }
}

/// The body of an answer, piece by piece as it comes.
pub struct AnswerBody {
    framing: Framing,
    link: Option<Box<Link>>,
    pool: Rc<Pool>,
    silence: Silence,
    /// The connection may carry another exchange.
    keeps: bool,
}

/// Why an answer's body broke off.
#[derive(Debug)]
pub enum BodyFailed {
    /// The upstream closed, or broke its framing.
    Broken(String),
    /// The upstream sent nothing for `idle_timeout`.
    Silent,
}

impl AnswerBody {
    pub(super) fn new(head: &Head, link: Box<Link>, pool: Rc<Pool>, patience: Duration) -> AnswerBody {
        let (framing, keeps) = (head.framing, head.keeps);
        AnswerBody { framing, link: Some(link), pool, silence: Silence::new(patience), keeps }
    }

    /// The length of what is to come, where the upstream said it.
    #[must_use]
    pub fn exact(&self) -> Option<u64> {
        self.framing.exact()
    }

    /// Whether nothing but the end of the connection tells the end of the body: it may have come too soon.
    #[must_use]
    pub fn ends_by_closing(&self) -> bool {
        self.framing == Framing::ToTheEnd
    }

    /// The next piece; `None` at the end.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyFailed>>> {
        let AnswerBody { framing, link, silence, .. } = self;
        loop {
            let Some(open) = link else { return Poll::Ready(None) };
            // What an upstream wrote as one, an event most often, goes on as one where all of it is there.
            if framing.breaks_off(&mut open.wire.held) == Ok(true)
                && open.wire.held.len() < WHOLE
                && matches!(open.wire.poll_fill(cx), Poll::Ready(Ok(1..)))
            {
                silence.broken();
                continue;
            }
            match framing.take(&mut open.wire.held) {
                Ok(Some(piece)) => return Poll::Ready(Some(Ok(piece))),
                Ok(None) if framing.is_over() => {
                    self.park();
                    return Poll::Ready(None);
                }
                Ok(None) => {}
                Err(what) => return self.broken(BodyFailed::Broken(what.into())),
            }
            if open.early && open.wire.is_unsent() && matches!(open.wire.poll_send(cx), Poll::Ready(Err(_))) {
                open.wire.stop_sending();
            }
            match open.wire.poll_fill(cx) {
                Poll::Ready(Ok(0)) if *framing == Framing::ToTheEnd => {
                    self.link = None;
                    return Poll::Ready(None);
                }
                Poll::Ready(Ok(0)) => return self.broken(BodyFailed::Broken("the connection ended too soon".into())),
                Poll::Ready(Ok(_)) => silence.broken(),
                Poll::Ready(Err(error)) => return self.broken(BodyFailed::Broken(error.to_string())),
                Poll::Pending if silence.is_too_long(cx) => return self.broken(BodyFailed::Silent),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// The next piece that is here already, of an answer that nobody waits for any more.
    pub fn here(&mut self) -> Option<Bytes> {
        let open = self.link.as_mut()?;
        loop {
            if let Some(piece) = self.framing.take(&mut open.wire.held).ok()? {
                return Some(piece);
            }
            if self.framing.is_over() {
                return None;
            }
            let Poll::Ready(Ok(1..)) = open.wire.poll_fill(&mut Context::from_waker(Waker::noop())) else {
                return None;
            };
        }
    }

    fn broken(&mut self, why: BodyFailed) -> Poll<Option<Result<Bytes, BodyFailed>>> {
        self.link = None;
        Poll::Ready(Some(Err(why)))
    }

    fn park(&mut self) {
        if let Some(link) = self.link.take()
            && self.keeps
            && link.is_clean()
        {
            self.pool.put(link);
        }
    }
}

/// Whoever knows the length of a body drops it with its last byte, without asking for its end.
impl Drop for AnswerBody {
    fn drop(&mut self) {
        if self.framing.is_over() {
            self.park();
        }
    }
}

/// A deadline that every piece moves, without touching the timer at every piece.
struct Silence {
    patience: Duration,
    last: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Silence {
    fn new(patience: Duration) -> Silence {
        Silence { patience, last: now(), timer: None }
    }

    fn broken(&mut self) {
        if self.timer.is_some() {
            self.last = now();
        }
    }

    fn is_too_long(&mut self, cx: &mut Context<'_>) -> bool {
        if self.timer.is_none() {
            self.last = now();
        }
        let patience = self.patience;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(patience)));
        while timer.as_mut().poll(cx).is_ready() {
            if self.last.elapsed() >= patience {
                return true;
            }
            timer.as_mut().reset(self.last + patience);
        }
        false
    }
}
