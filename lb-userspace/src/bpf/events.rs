//! Events from the packet program, as they come.

use std::io;

use aya::maps::{MapData, RingBuf};
use lb_common::abi::Event;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::load::Kernel;

/// The reader of the ring buffer `EVENTS`. There is one: what it takes, nobody else sees.
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Kernel {
    /// The reader of events, the first time; `None` afterwards. Must be called within a Tokio runtime.
    ///
    /// # Errors
    ///
    /// When the ring buffer can't be waited for.
    pub fn take_events(&mut self) -> io::Result<Option<Events>> {
        let Some(ring) = self.events.take() else { return Ok(None) };
        // SAFETY: the ring owns its descriptor, never changes it, and `Events` keeps the ring.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(|error| error.into_parts().1)?;
        Ok(Some(Events { ring }))
    }
}

impl Events {
    /// The next event; waits until there is one. Dropping the future loses none.
    ///
    /// # Errors
    ///
    /// When the ring buffer can't be waited for.
    pub async fn next(&mut self) -> io::Result<Event> {
        loop {
            if let Some(event) = self.try_next() {
                return Ok(event);
            }
            // Cleared before the next look: an event that comes after it sets it again.
            self.ring.readable_mut().await?.clear_ready();
        }
    }

    /// The next event, if there is one now.
    pub fn try_next(&mut self) -> Option<Event> {
        let ring = self.ring.get_mut();
        while let Some(item) = ring.next() {
            if let Ok(event) = bytemuck::try_pod_read_unaligned(&item) {
                return Some(event);
            }
        }
        None
    }
}
