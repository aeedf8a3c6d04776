//! Clients that connect to the app all the time.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{SOON, Scene};
use crate::{
    client::{Held, Hold, Running, SteadyLoad, Tally, row},
    scenario::Scenario,
};

/// New connections at a steady rate, and some that stay open, over both families. A connection fails when it is
/// refused, reset or silent for this long.
const TIMEOUT: Duration = Duration::from_secs(5);
/// New connections a second, and open ones, in each family.
const RATE: u32 = 40;
const HELD: usize = 10;

/// Clients of `demo/httpbin`. Dropping it ends them.
#[derive(Debug)]
pub struct Traffic {
    loads: [Running; 2],
    held: [Held; 2],
}

impl Traffic {
    /// Begins, and returns once it has gone well for a moment.
    ///
    /// # Errors
    /// When it goes wrong from the start.
    pub fn begin(scene: &Scene) -> Result<Traffic> {
        let bed = scene.stage().bed();
        let targets = [bed.vip_http(), bed.vip_http6()];
        let [a, b] = targets.map(|to| bed.client().hold(Hold { timeout: TIMEOUT, ..Hold::new(to, HELD) }));
        let [c, d] =
            targets.map(|to| bed.client().load(SteadyLoad { timeout: TIMEOUT, ..SteadyLoad::new(to, RATE) }));
        let traffic = Traffic { held: [a?, b?], loads: [c?, d?] };
        traffic.goes_on()?;
        Ok(traffic)
    }

    /// Waits until a few dozen connections that begin from now on have succeeded in a row, in both families.
    ///
    /// # Errors
    /// When they don't; the error says what became of all so far.
    pub fn goes_on(&self) -> Result<()> {
        let now = Instant::now();
        for load in &self.loads {
            let gone_well = load.wait_for(now + SOON, |all| row(all, now, RATE as usize, |_| true));
            let tally = || load.settled().iter().collect::<Tally>();
            ensure!(gone_well.is_some(), "connections fail: {:?}", tally());
        }
        Ok(())
    }

    /// Ends, and expects that nothing failed: no connection that was opened, and none that was open. `name` is
    /// the scenario's, for the report of the run.
    ///
    /// # Errors
    /// When something failed.
    pub fn end_unharmed(self, name: &str) -> Result<()> {
        let outcomes: Vec<_> = self.loads.into_iter().flat_map(|load| load.stop().outcomes).collect();
        let broken: Vec<String> = self.held.into_iter().flat_map(|held| held.stop().broken).collect();
        let tally: Tally = outcomes.iter().collect();
        let mut line = Scenario::of(name, &tally);
        line.requests += 2 * HELD as u64;
        line.failed += broken.len() as u64;
        line.report();
        ensure!(
            tally.failed == 0 && broken.is_empty(),
            "connections failed: {tally:?}; open ones: {broken:?}"
        );
        Ok(())
    }
}
