//! The service's main as a process of its own, driven over HTTP as its clients and agents drive it: the walk of a request,
//! the rows of the failure matrix that need one main, what broke in its forerunner, and kills at random.

#[path = "../support/mod.rs"]
mod support;

mod agent;
mod forerunner;
mod http;
mod kills;
mod matrix;
mod walk;
mod world;
