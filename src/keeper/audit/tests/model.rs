//! The hand-over between keeper and workers under every interleaving that shuttle finds: nobody waits for ever, and
//! every written line belongs to exactly one who closes it.

use std::sync::Arc;

use shuttle::future::{block_on, spawn};
use shuttle::sync::atomic::{AtomicU64, Ordering};

/// The same source as production, over locks that the model's scheduler owns.
#[path = "../handoff.rs"]
#[expect(clippy::duplicate_mod, dead_code, reason = "the model is the source itself, and needs a part of it")]
mod handoff;

mod sync {
    #[derive(Debug, Default)]
    pub(super) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(super) fn new(value: T) -> Mutex<T> {
            Mutex(shuttle::sync::Mutex::new(value))
        }
        pub(super) fn lock(&self) -> shuttle::sync::MutexGuard<'_, T> {
            self.0.lock().unwrap()
        }
    }
}

use handoff::{Lane, Leaving, Outcome, Ticket};

/// Three requests on one lane; one of them leaves at some time, woken or not. The keeper answers in one batch or two.
fn scenario(first_batch: usize, leaver: usize) {
    let lane: Arc<Lane> = Arc::default();
    let tickets: Vec<Arc<Ticket>> = (0..3).map(|_| Ticket::new(Arc::clone(&lane))).collect();
    let closed = Arc::new(AtomicU64::new(0));

    let keeper = {
        let (tickets, closed) = (tickets.clone(), Arc::clone(&closed));
        shuttle::thread::spawn(move || {
            for batch in [&tickets[..first_batch], &tickets[first_batch..]] {
                let mut answered = false;
                for (seq, ticket) in batch.iter().enumerate() {
                    match ticket.answer(Outcome::Written(seq as u64)) {
                        Ok(()) => answered = true,
                        Err(leaving) => {
                            assert!(matches!(leaving, Leaving::Gone(_)));
                            closed.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                }
                if answered {
                    tickets[0].lane().wake_one();
                }
            }
        })
    };
    block_on(async {
        let left = {
            let (ticket, closed) = (Arc::clone(&tickets[leaver]), Arc::clone(&closed));
            spawn(async move {
                // Polled once, and dropped before or after the answer.
                let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(ticket.poll(cx))).await;
                shuttle::future::yield_now().await;
                match polled {
                    std::task::Poll::Ready(_) => drop(closed.fetch_add(1, Ordering::SeqCst)),
                    std::task::Poll::Pending => {
                        let gone = Leaving::Gone(crate::audit::Fields::of(&()));
                        closed.fetch_add(u64::from(ticket.leave(gone).is_err()), Ordering::SeqCst);
                    }
                }
            })
        };
        let waiters: Vec<_> = (0..3).filter(|index| *index != leaver).collect();
        let waiters = waiters.into_iter().map(|index| {
            let (ticket, closed) = (Arc::clone(&tickets[index]), Arc::clone(&closed));
            spawn(async move {
                assert!(matches!(std::future::poll_fn(|cx| ticket.poll(cx)).await, Outcome::Written(_)));
                closed.fetch_add(1, Ordering::SeqCst);
            })
        });
        for waiter in waiters.collect::<Vec<_>>() {
            waiter.await.unwrap();
        }
        left.await.unwrap();
    });
    keeper.join().unwrap();
    assert_eq!(closed.load(Ordering::SeqCst), 3);
}

#[test]
fn nobody_is_forgotten_and_every_line_is_closed_once() {
    for (first_batch, leaver) in [(3, 2), (3, 0), (2, 1), (2, 2)] {
        shuttle::check_random(move || scenario(first_batch, leaver), 2000);
        shuttle::check_pct(move || scenario(first_batch, leaver), 500, 3);
    }
}
