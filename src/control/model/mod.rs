//! What the service speaks of, as types that every role, the store, the command line and the page share: requests, items,
//! agents, the catalog, events. Values only, no I/O. Unknown fields are refused.

pub mod agent;
pub mod catalog;
pub mod event;
pub mod item;
pub mod name;
pub mod page;
pub mod request;
pub mod states;
pub mod time;
