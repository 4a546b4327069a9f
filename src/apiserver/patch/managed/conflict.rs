//! What somebody else owns of a configuration: 409 in the original's words. Pure.

use super::{entry::Owner, set::Set};
use crate::apiserver::status::{Cause, CauseType, Details, Reason, Status};

/// Conflicts named at most; how many there are is said.
pub const MAX_NAMED: usize = 100;

/// What one other owns.
#[derive(Clone, Debug)]
pub struct Conflict {
    pub owner: Owner,
    pub fields: Set,
}

pub fn refusal(conflicts: &[Conflict]) -> Status {
    let mut conflicts: Vec<&Conflict> = conflicts.iter().collect();
    conflicts.sort_by(|a, b| a.owner.words().cmp(&b.owner.words()));
    let count: usize = conflicts
        .iter()
        .map(|conflict| conflict.fields.count())
        .sum();
    let mut causes = Vec::new();
    let mut lines = Vec::new();
    for conflict in conflicts {
        let owner = conflict.owner.words();
        let paths = conflict.fields.paths(MAX_NAMED - causes.len());
        if paths.is_empty() {
            continue;
        }
        match count {
            1 => lines.push(format!("conflict with {owner}: {}", paths.join(""))),
            _ => {
                lines.push(format!("conflicts with {owner}:"));
                lines.extend(paths.iter().map(|path| format!("- {path}")));
            }
        }
        causes.extend(paths.into_iter().map(|path| Cause {
            reason: CauseType::FieldManagerConflict,
            message: format!("conflict with {owner}"),
            field: path,
        }));
    }
    if count > causes.len() {
        lines.push(format!("and {} more", count - causes.len()));
    }
    let many = if count == 1 { "conflict" } else { "conflicts" };
    let message = format!("Apply failed with {count} {many}: {}", lines.join("\n"));
    let mut status = Status::new(Reason::Conflict, message);
    status.details = Some(Details {
        causes,
        ..Details::default()
    });
    status
}
