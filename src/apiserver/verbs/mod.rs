//! The verbs, each written once over any row.

mod apply;
mod create;
mod delete;
mod list;
mod patch;
mod scale;
mod update;
mod watch;

pub use apply::{apply, apply_scale};
pub use create::create;
pub use delete::{Deleted, delete, delete_collection};
pub use list::{ListOptions, list};
pub use patch::patch;
pub use scale::{get_scale, patch_scale, put_replicas, scale_of, update_scale};
pub use update::{Missing, update};
pub use watch::{Event, Start, WatchOptions, watch};
