//! One line of the report: something that is needed, and whether it is here.

/// What an item is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// To compile.
    Build,
    /// To run the agent, the demo and the tests.
    Run,
    /// To check style as CI does.
    Ci,
    /// To run the tests and the demo against Kubernetes.
    Kubernetes,
    /// To run the benchmarks, with what Kanmon is compared to.
    Bench,
}

impl Need {
    /// Whether whoever needs `self` needs `other` too.
    pub(crate) fn includes(self, other: Need) -> bool {
        let all_of_it: &[Need] = match self {
            Need::Build => &[Need::Build],
            Need::Run => &[Need::Build, Need::Run],
            Need::Ci => &[Need::Build, Need::Run, Need::Ci],
            Need::Kubernetes => &[Need::Build, Need::Run, Need::Ci, Need::Kubernetes],
            Need::Bench => &[Need::Build, Need::Run, Need::Bench],
        };
        all_of_it.contains(&other)
    }
}

/// How setup gets a missing item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fix {
    /// By these packages of the distribution.
    Packages(Vec<String>),
    /// By this package of the distribution, without the service of the same name that it brings.
    Service(String),
    /// By rustup's nightly with rust-src.
    Nightly,
    /// By these components of the toolchain that runs cargo.
    Components(Vec<String>),
    /// By downloading or building bpf-linker, after these packages.
    Linker(Vec<String>),
    /// By building Kubernetes' binaries from their Go module.
    Kubernetes,
    /// Not at all: a person has to.
    ByHand,
}

/// Something that is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    /// What it is called.
    pub(crate) name: String,
    /// What it is needed for.
    pub(crate) need: Need,
    /// Whether it is here.
    pub(crate) state: State,
    /// How setup gets it.
    pub(crate) fix: Fix,
}

/// Whether it is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Yes: which one.
    Have(String),
    /// No: what is wrong, and how to get it.
    Missing {
        /// What is wrong.
        what: String,
        /// How a person gets it.
        how: String,
    },
}

impl Item {
    /// It is here.
    pub(crate) fn have(name: &str, which: &str) -> Self {
        let state = State::Have(which.to_owned());
        Self { name: name.to_owned(), need: Need::Run, state, fix: Fix::ByHand }
    }

    /// It is not, and a person has to get it.
    pub(crate) fn missing(name: &str, what: &str, how: &str) -> Self {
        let state = State::Missing { what: what.to_owned(), how: how.to_owned() };
        Self { name: name.to_owned(), need: Need::Run, state, fix: Fix::ByHand }
    }

    /// Says what it is needed for.
    pub(crate) fn needed_to(self, need: Need) -> Self {
        Self { need, ..self }
    }

    /// Says how setup gets it.
    pub(crate) fn fixed_by(self, fix: Fix) -> Self {
        Self { fix, ..self }
    }

    /// Whether it is here.
    pub(crate) fn is_here(&self) -> bool {
        matches!(self.state, State::Have(_))
    }

    /// The line of the report.
    pub(crate) fn line(&self) -> String {
        match &self.state {
            State::Have(which) => format!("have     {:<20} {which}", self.name),
            State::Missing { what, how } => format!("missing  {:<20} {what}; to get it: {how}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_benchmark_needs_what_runs_and_not_what_only_ci_takes() {
        assert!(Need::Bench.includes(Need::Build) && Need::Bench.includes(Need::Run));
        assert!(!Need::Bench.includes(Need::Ci) && !Need::Bench.includes(Need::Kubernetes));
        assert!(!Need::Kubernetes.includes(Need::Bench));
        assert!(Need::Kubernetes.includes(Need::Ci) && !Need::Ci.includes(Need::Kubernetes));
    }

    #[test]
    fn a_missing_item_says_how_to_get_it() {
        let item = Item::missing("curl", "not in PATH", "apt-get install curl");
        assert!(!item.is_here());
        assert_eq!(item.line(), "missing  curl                 not in PATH; to get it: apt-get install curl");
    }
}
