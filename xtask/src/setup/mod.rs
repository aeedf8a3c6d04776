//! `cargo xtask setup`: gets what is missing, so that nobody installs anything by hand.

mod install;
mod item;
mod items;
mod kernel;
pub(crate) mod kubernetes;
pub(crate) mod linker;
pub(crate) mod route;

use anyhow::{Result, bail};

use self::install::Installer;
use self::item::Item;
pub(crate) use self::item::Need;
use self::kubernetes::Provided;
use self::route::{Choice, Route};
use crate::privilege::Privilege;

/// Reports what is here and what is missing, one line an item; whether all is here.
///
/// # Errors
/// The environment asks for a route that doesn't exist, or tests/kube can't be read.
pub(crate) fn check() -> Result<bool> {
    let privilege = Privilege::detect();
    let route = match route::choose(route::look(), route::asked()?) {
        Choice::Take(route) => {
            println!("route    {route}");
            route
        }
        Choice::TryBoth => {
            println!("route    none yet: `cargo xtask setup` tries rustup first, then debian");
            Route::Rustup
        }
        Choice::Nothing => {
            println!("route    none: install rustup from https://rustup.rs");
            Route::Rustup
        }
    };
    let mut items = items::common();
    items.extend(items::of_route(route));
    items.extend(kernel::items(privilege));
    items.push(kubernetes::item()?);
    for item in &items {
        println!("{}", item.line());
    }
    let complete = items.iter().all(Item::is_here);
    if !complete {
        println!(
            "`cargo xtask setup` gets all that can be installed; every other command gets just what it needs."
        );
    }
    Ok(complete)
}

/// Gets whatever `need` takes and is missing; the route to compile for eBPF by.
///
/// # Errors
/// Something can't be had; the message names it and says how a person gets it.
pub(crate) fn ensure(need: Need) -> Result<Route> {
    let privilege = Privilege::detect();
    // Nothing is fetched in vain for a machine that can't serve.
    refuse_lacks(kernel::items(privilege), need)?;
    let choice = route::choose(route::look(), route::asked()?);
    let mut installer = Installer::new(privilege);
    installer.get(None, &missing(items::common(), need))?;
    let route = match choice {
        Choice::Take(route) => {
            installer.get(Some(route), &missing(items::of_route(route), need))?;
            route
        }
        Choice::TryBoth => {
            match installer.get(Some(Route::Rustup), &missing(items::of_route(Route::Rustup), need)) {
                Ok(()) => Route::Rustup,
                Err(error) => {
                    eprintln!("Route rustup can't be had here: {error:#}");
                    eprintln!("Taking route {}.", Route::Debian);
                    installer.get(Some(Route::Debian), &missing(items::of_route(Route::Debian), need))?;
                    Route::Debian
                }
            }
        }
        Choice::Nothing => bail!(
            "There is no compiler for eBPF, and neither rustup nor apt to get one with: install rustup from \
             https://rustup.rs"
        ),
    };
    let mut left = items::common();
    left.extend(items::of_route(route));
    refuse_lacks(left, need)?;
    if need == Need::Kubernetes
        && let Provided::NoGo(why) = kubernetes::provide()?
    {
        bail!("Kubernetes' binaries for the tests can't be built: {why}");
    }
    if installer.worked() {
        eprintln!("Everything is here. Route: {route}.");
    }
    Ok(route)
}

/// Refuses to go on without what `need` takes of these items.
fn refuse_lacks(items: Vec<Item>, need: Need) -> Result<()> {
    let lines: Vec<_> = missing(items, need).iter().map(Item::line).collect();
    if !lines.is_empty() {
        bail!("This machine lacks:\n{}", lines.join("\n"));
    }
    Ok(())
}

fn missing(items: Vec<Item>, need: Need) -> Vec<Item> {
    items.into_iter().filter(|item| need.includes(item.need) && !item.is_here()).collect()
}
