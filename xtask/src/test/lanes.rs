//! Which suites run at the same time: those that mostly wait do, and no others.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::thread;

use anyhow::Result;

/// How many suites with clusters run at once. One keeps two processors a third busy: it waits for leases, probes and
/// API servers.
const WAITING_SUITES: usize = 2;

/// Does `work` with every item: one after the other where it needs the machine to itself, and then those that
/// mostly wait, some at once. Its first error ends it, when what runs has ended.
///
/// # Errors
/// The first of `work`.
pub(super) fn run<T: Sync>(
    items: &[T],
    mostly_waits: impl Fn(&T) -> bool,
    work: impl Fn(&T) -> Result<()> + Sync,
) -> Result<()> {
    let (waiting, busy): (Vec<_>, Vec<_>) = items.iter().partition(|item| mostly_waits(item));
    busy.into_iter().try_for_each(&work)?;
    let queue = Mutex::new(VecDeque::from(waiting));
    let next = || queue.lock().ok()?.pop_front();
    let lane = || {
        while let Some(item) = next() {
            if let Err(error) = work(item) {
                queue.lock().map(|mut queue| queue.clear()).ok();
                return Err(error);
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..WAITING_SUITES).map(|_| scope.spawn(lane)).collect();
        let ends = lanes
            .into_iter()
            .map(|lane| lane.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        ends.collect::<Vec<_>>().into_iter().collect()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use anyhow::bail;

    use super::*;

    #[test]
    fn those_that_wait_run_side_by_side_and_after_the_others() {
        let (begun, together) = (Mutex::new(Vec::new()), Barrier::new(WAITING_SUITES));
        run(
            &["kube_a", "races", "kube_b", "traffic"],
            |name| name.starts_with("kube"),
            |name| {
                begun.lock().unwrap().push(*name);
                if name.starts_with("kube") {
                    // Never returns if they run one after the other.
                    together.wait();
                }
                Ok(())
            },
        )
        .unwrap();
        let begun = begun.into_inner().unwrap();
        assert_eq!(begun[..2], ["races", "traffic"]);
        assert_eq!(begun.len(), 4);
    }

    #[test]
    fn an_error_ends_it_and_is_told() {
        let done = Mutex::new(0);
        let error = run(
            &[0; 100],
            |_| true,
            |_| {
                *done.lock().unwrap() += 1;
                bail!("stopped")
            },
        );
        assert_eq!(error.unwrap_err().to_string(), "stopped");
        assert!(*done.lock().unwrap() <= WAITING_SUITES);
    }
}
