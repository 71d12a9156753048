//! Member offsets and enumerators from the kernel's BTF (type information).
//!
//! The library that loads the programs does not expose member offsets, so this module parses the type section itself
//! (Documentation/bpf/btf.rst). The file comes from the kernel, but every length in it is checked nevertheless.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// BTF of the running kernel (5.4, `CONFIG_DEBUG_INFO_BTF`).
pub(super) const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why a file cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BtfError {
    #[error("not BTF: wrong magic number or header")]
    Header,
    #[error("type {0} is truncated or of an unknown kind")]
    Type(usize),
}

/// Length of the prefix that is compared before a whole name is read, bytes: that of the shortest name looked for, with its NUL.
const HEAD: usize = 4;
/// Length of the header, bytes.
const HEADER: u32 = 24;
/// Longest chain of typedefs, qualifiers and nested structs that is followed.
const MAX_DEPTH: usize = 16;

// Kinds, include/uapi/linux/btf.h.
const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FORWARD: u32 = 7;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

/// The type section of a kernel's BTF.
pub(super) struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Offset of each type in `types`, by type ID. Type 0 is void.
    starts: Vec<u32>,
    /// Type IDs of the requested structs, enums and typedefs, by name.
    named: BTreeMap<&'a str, u32>,
    /// Type IDs and names of the requested functions and typedefs, in ascending order of their IDs. A name may occur more than
    /// once.
    attach_points: Vec<(u32, &'a str)>,
}

impl<'a> Btf<'a> {
    /// Indexes `data` and keeps the types whose names are in `wanted`.
    pub(super) fn parse(data: &'a [u8], wanted: &BTreeSet<&str>) -> Result<Self, BtfError> {
        let word = |at: usize| read(data, at).ok_or(BtfError::Header);
        if data.get(..2) != Some(&0xeb9f_u16.to_ne_bytes()) {
            return Err(BtfError::Header);
        }
        let header = word(4)? as usize;
        let section = |offset: u32, length: u32| -> Option<Range<usize>> {
            let start = header.checked_add(offset as usize)?;
            Some(start..start.checked_add(length as usize)?)
        };
        let part = |at: usize| -> Result<&'a [u8], BtfError> {
            let range = section(word(at)?, word(at + 4)?).ok_or(BtfError::Header)?;
            data.get(range).ok_or(BtfError::Header)
        };
        let (types, strings) = (part(8)?, part(16)?);
        let mut btf =
            Self { types, strings, starts: vec![0], named: BTreeMap::new(), attach_points: Vec::new() };
        btf.index(wanted)?;
        Ok(btf)
    }

    fn index(&mut self, wanted: &BTreeSet<&str>) -> Result<(), BtfError> {
        // The first bytes rule out nearly every name, so that few are read as a whole.
        let head = |name: &[u8]| name.first_chunk::<HEAD>().copied();
        let heads: BTreeSet<_> =
            wanted.iter().filter_map(|name| head(&[name.as_bytes(), &[0; HEAD]].concat())).collect();
        let mut at = 0;
        while at < self.types.len() {
            let id = self.starts.len();
            let cut = || BtfError::Type(id);
            let info = read(self.types, at + 4).ok_or_else(cut)?;
            let size = 12 + extra(info).ok_or_else(cut)?;
            if at + size > self.types.len() {
                return Err(cut());
            }
            if matches!(kind(info), STRUCT | ENUM | TYPEDEF | FUNC) {
                let offset = read(self.types, at).ok_or_else(cut)?;
                let begins = self.strings.get(offset as usize..).and_then(head);
                if begins.is_some_and(|begins| heads.contains(&begins))
                    && let name = self.name(offset)
                    && wanted.contains(name)
                {
                    let id = u32::try_from(id).map_err(|_| cut())?;
                    if kind(info) != FUNC {
                        self.named.insert(name, id);
                    }
                    if matches!(kind(info), FUNC | TYPEDEF) {
                        self.attach_points.push((id, name));
                    }
                }
            }
            self.starts.push(u32::try_from(at).map_err(|_| cut())?);
            at += size;
        }
        Ok(())
    }

    fn name(&self, offset: u32) -> &'a str {
        let rest = self.strings.get(offset as usize..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == 0).unwrap_or(0);
        std::str::from_utf8(&rest[..end]).unwrap_or_default()
    }

    /// Returns a type section in which the requested functions and typedefs keep their IDs and names, and every other type is
    /// an anonymous one. The library searches all types from the first one for each program; with this section that is about a
    /// hundred times faster.
    pub(super) fn skeleton(&self) -> Vec<u8> {
        let (mut types, mut strings) = (Vec::new(), vec![0]);
        let mut push = |name: usize, kind: u32| {
            for word in [u32::try_from(name).unwrap_or(0), kind << 24, 0] {
                types.extend(word.to_ne_bytes());
            }
        };
        let mut next = 1;
        for (id, name) in &self.attach_points {
            (next..*id).for_each(|_| push(0, FORWARD));
            push(strings.len(), self.at(*id).map_or(FORWARD, |(_, info)| kind(info)));
            strings.extend(name.as_bytes());
            strings.push(0);
            next = id + 1;
        }
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(0);
        // Magic number, version and flags; then the length of the header and the offsets and lengths of types and strings.
        let mut section = [&0xeb9f_u16.to_ne_bytes()[..], &[1, 0]].concat();
        for word in [HEADER, 0, length(&types), length(&types), length(&strings)] {
            section.extend(word.to_ne_bytes());
        }
        [section, types, strings].concat()
    }

    /// Returns the offset of a type and its info word.
    fn at(&self, id: u32) -> Option<(usize, u32)> {
        let start = *self.starts.get(id as usize).filter(|_| id != 0)? as usize;
        Some((start, read(self.types, start + 4)?))
    }

    /// Follows typedefs and qualifiers to the underlying type; returns its offset and its info word.
    fn resolve(&self, mut id: u32) -> Option<(usize, u32)> {
        for _ in 0..MAX_DEPTH {
            let (start, info) = self.at(id)?;
            match kind(info) {
                TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => id = read(self.types, start + 8)?,
                _ => return Some((start, info)),
            }
        }
        None
    }

    /// Returns the byte offset of `path` (`a.b.c`) in struct `name`; `None` if this kernel has no such member.
    pub(super) fn offset(&self, name: &str, path: &str) -> Option<u32> {
        let mut id = *self.named.get(name)?;
        let mut offset = 0;
        for part in path.split('.') {
            let (inner, member) = self.member(id, part, 0)?;
            offset += inner;
            id = member;
        }
        Some(offset)
    }

    /// Returns the offset and type of a member, which may be inside anonymous structs and unions.
    fn member(&self, id: u32, name: &str, depth: usize) -> Option<(u32, u32)> {
        let (start, info) = self.resolve(id)?;
        if depth > MAX_DEPTH || !matches!(kind(info), STRUCT | UNION) {
            return None;
        }
        for index in 0..vlen(info) {
            let member = start + 12 + index * 12;
            let member_type = read(self.types, member + 4)?;
            let raw = read(self.types, member + 8)?;
            // If the kind flag is set, the upper byte holds the size of a bit field.
            let bits = if info >> 31 == 1 { raw & 0x00ff_ffff } else { raw };
            match self.name(read(self.types, member)?) {
                found if found == name => return Some((bits / 8, member_type)),
                "" => {
                    if let Some((inner, found)) = self.member(member_type, name, depth + 1) {
                        return Some((bits / 8 + inner, found));
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// Returns the value of an enumerator of enum `name`; `None` if this kernel does not have it.
    pub(super) fn enumerator(&self, name: &str, enumerator: &str) -> Option<u32> {
        let (start, info) = self.at(*self.named.get(name)?)?;
        if kind(info) != ENUM {
            return None;
        }
        let mut offsets = (0..vlen(info)).map(|index| start + 12 + index * 8);
        let matches =
            |at: &usize| read(self.types, *at).is_some_and(|offset| self.name(offset) == enumerator);
        let offset = offsets.find(matches)?;
        read(self.types, offset + 4)
    }

    /// Returns all enumerators of enum `name`; none if this kernel does not have it.
    pub(super) fn enumerators(&self, name: &str) -> Vec<(&'a str, u32)> {
        let Some((start, info)) = self.named.get(name).and_then(|id| self.at(*id)) else { return Vec::new() };
        let count = if kind(info) == ENUM { vlen(info) } else { 0 };
        let offsets = (0..count).map(|index| start + 12 + index * 8);
        offsets.filter_map(|at| Some((self.name(read(self.types, at)?), read(self.types, at + 4)?))).collect()
    }

    /// Returns whether the first argument of a raw tracepoint is a pointer; `None` if this kernel does not have it.
    pub(super) fn takes_pointer(&self, tracepoint: &str) -> Option<bool> {
        let (start, info) = self.resolve(*self.named.get(tracepoint)?)?;
        // typedef void (*btf_trace_X)(void *__data, …)
        let (proto, info) = self.resolve((kind(info) == PTR).then(|| read(self.types, start + 8))??)?;
        if kind(info) != FUNC_PROTO || vlen(info) < 2 {
            return None;
        }
        let (_, info) = self.resolve(read(self.types, proto + 12 + 8 + 4)?)?;
        Some(kind(info) == PTR)
    }
}

fn read(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

const fn kind(info: u32) -> u32 {
    info >> 24 & 0x1f
}

const fn vlen(info: u32) -> usize {
    (info & 0xffff) as usize
}

/// Returns how many bytes follow the common twelve, by kind; `None` for an unknown kind.
const fn extra(info: u32) -> Option<usize> {
    Some(match kind(info) {
        INT | VAR | DECL_TAG => 4,
        ARRAY => 12,
        STRUCT | UNION | DATASEC | ENUM64 => 12 * vlen(info),
        ENUM | FUNC_PROTO => 8 * vlen(info),
        // Pointer, forward, typedef, qualifiers, function, float, type tag.
        PTR | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel() -> Vec<u8> {
        std::fs::read(VMLINUX).expect("this kernel's type information; the tests need CONFIG_DEBUG_INFO_BTF")
    }

    #[test]
    fn finds_members_inside_anonymous_unions_and_typedefs() {
        let data = kernel();
        let wanted = BTreeSet::from(["sock_common", "sock", "sock_exterr_skb"]);
        let btf = Btf::parse(&data, &wanted).expect("parses");
        // The first members of sock_common: daddr and rcv_saddr share an anonymous union and struct.
        assert_eq!(btf.offset("sock_common", "skc_daddr"), Some(0));
        assert_eq!(btf.offset("sock_common", "skc_rcv_saddr"), Some(4));
        assert_eq!(btf.offset("sock", "__sk_common.skc_rcv_saddr"), Some(4));
        // 24 on every kernel measured.
        assert_eq!(btf.offset("sock_exterr_skb", "ee"), Some(24));
        assert_eq!(btf.offset("sock", "no_such_member"), None);
        assert_eq!(btf.offset("no_such_struct", "a"), None);
    }

    #[test]
    fn finds_enumerators() {
        let data = kernel();
        let btf = Btf::parse(&data, &BTreeSet::from(["bpf_func_id"])).expect("parses");
        // include/uapi/linux/bpf.h. These numbers never change.
        assert_eq!(btf.enumerator("bpf_func_id", "BPF_FUNC_ringbuf_reserve"), Some(131));
        assert_eq!(btf.enumerator("bpf_func_id", "BPF_FUNC_no_such"), None);
        assert!(btf.enumerators("bpf_func_id").contains(&("BPF_FUNC_ringbuf_reserve", 131)));
        assert_eq!(btf.enumerators("no_such"), Vec::new());
    }

    #[test]
    fn distinguishes_pointer_arguments_of_tracepoints() {
        let data = kernel();
        let wanted = BTreeSet::from(["btf_trace_sched_process_exit", "btf_trace_signal_generate"]);
        let btf = Btf::parse(&data, &wanted).expect("parses");
        assert_eq!(btf.takes_pointer("btf_trace_sched_process_exit"), Some(true));
        assert_eq!(btf.takes_pointer("btf_trace_signal_generate"), Some(false));
        assert_eq!(btf.takes_pointer("btf_trace_no_such"), None);
    }

    #[test]
    fn skeleton_keeps_type_ids() {
        let data = kernel();
        let wanted =
            BTreeSet::from(["btf_trace_sched_process_exit", "tcp_v4_rcv", "no_such_function", "sock"]);
        let whole = Btf::parse(&data, &wanted).expect("parses");
        let skeleton = whole.skeleton();
        let small = Btf::parse(&skeleton, &wanted).expect("parses");
        let names: BTreeSet<_> = small.attach_points.iter().map(|(_, name)| *name).collect();
        assert_eq!(names, BTreeSet::from(["btf_trace_sched_process_exit", "tcp_v4_rcv"]));
        assert_eq!(small.attach_points, whole.attach_points);
        for (id, name) in &small.attach_points {
            let kinds = [&small, &whole].map(|btf| btf.at(*id).map(|(_, info)| kind(info)));
            assert_eq!(kinds[0], kinds[1], "{name}");
        }
        assert!(skeleton.len() < data.len() / 2);
    }

    #[test]
    fn truncated_file_never_panics() {
        let data = kernel();
        for cut in (0..200).chain((200..data.len()).step_by(data.len() / 50)) {
            if let Ok(btf) = Btf::parse(&data[..cut], &BTreeSet::from(["sock"])) {
                let _ = btf.offset("sock", "sk_err");
            }
        }
        assert!(Btf::parse(b"\x9f\xeb", &BTreeSet::new()).is_err());
        assert!(Btf::parse(b"", &BTreeSet::new()).is_err());
    }
}
