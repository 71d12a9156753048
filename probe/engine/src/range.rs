//! IP address ranges in CIDR notation.

use core::net::IpAddr;

/// An IP address range in CIDR notation: `10.96.0.0/12`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// An address of the range; bits beyond `length` are ignored.
    pub base: IpAddr,
    /// Prefix length in bits.
    pub length: u8,
}

impl Range {
    /// Parses `ADDRESS/LENGTH`; `None` for anything else. The length is not checked against the address family.
    pub fn parse(text: &str) -> Option<Self> {
        let (base, length) = text.trim().split_once('/')?;
        Some(Self { base: base.parse().ok()?, length: length.parse().ok()? })
    }

    /// Returns whether `ip` is in the range; false where `length` exceeds the address family.
    pub fn contains(self, ip: IpAddr) -> bool {
        match (self.base, ip) {
            (IpAddr::V4(base), IpAddr::V4(ip)) if self.length <= 32 => {
                let shift = 32 - u32::from(self.length);
                u64::from(u32::from(base)) >> shift == u64::from(u32::from(ip)) >> shift
            }
            (IpAddr::V6(base), IpAddr::V6(ip)) if self.length <= 128 => {
                let shift = 128 - u32::from(self.length);
                u128::from(base).checked_shr(shift) == u128::from(ip).checked_shr(shift)
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_contains_only_addresses_with_its_prefix() {
        let range = Range::parse("10.96.0.0/12").expect("a range");
        assert!(
            range.contains("10.96.0.1".parse().expect("ip"))
                && range.contains("10.111.255.255".parse().expect("ip"))
        );
        assert!(!range.contains("10.112.0.1".parse().expect("ip")));
        assert!(Range::parse("fd00::/108").expect("a range").contains("fd00::1".parse().expect("ip")));
        assert!(Range::parse("0.0.0.0/0").expect("a range").contains("1.2.3.4".parse().expect("ip")));
        assert!(Range::parse("::/0").expect("a range").contains("fd00::1".parse().expect("ip")));
        assert!(!Range { base: IpAddr::from([1, 2, 3, 4]), length: 99 }.contains(IpAddr::from([1, 2, 3, 4])));
        assert_eq!(Range::parse("nonsense"), None);
    }
}
