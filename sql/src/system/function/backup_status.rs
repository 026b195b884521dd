//! `get_backup_status()`: backups, restores, checks and prunes of this node, with how far they are.

use super::Function;
use crate::system::table::backups;

pub(super) const FUNCTION: Function = Function {
    name: "get_backup_status",
    argument: None,
    columns: backups::COLUMNS,
    rows: |context, _, rows| backups::rows(context, rows),
};
