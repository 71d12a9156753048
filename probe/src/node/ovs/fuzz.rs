//! Fuzz targets of the Open vSwitch parsers, see `crate::fuzz`.

use super::{database, kernel};
use crate::fuzz::is_clean;

/// A message of the datapath's multicast groups.
pub(in crate::node) fn message(message: &[u8]) {
    if let Some(change) = kernel::change(message) {
        assert!(is_clean(&change.name));
    }
    if let Some(datapath) = kernel::datapath(message) {
        assert!(is_clean(&datapath.name));
    }
}

/// A response of the database.
pub(in crate::node) fn database(bytes: &[u8]) {
    if let Ok(Some(response)) = database::find_response(bytes) {
        let read = database::parse_tables(&response);
        assert!(read.bridges.iter().all(|bridge| is_clean(bridge)));
        assert!(read.failed.iter().all(|failed| is_clean(&failed.error)));
    }
}
