//! `deploy/`, on real API servers: every manifest is taken, and the agent that it installs does its work with just the
//! rights and capabilities that it gives, all of which it uses.

mod manifests;
mod rights;
mod work;
