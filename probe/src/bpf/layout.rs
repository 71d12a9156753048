//! Resolves the globals of the kernel programs: offsets of kernel fields, and abilities of the running
//! kernel.

use std::collections::{BTreeMap, BTreeSet};

use super::btf::Btf;

/// The offset of a field of the kernel.
struct Field {
    /// Name of the global of the kernel programs.
    global: &'static str,
    /// Name of the struct.
    container: &'static str,
    /// Paths of the field, newest kernels first, and bytes to add to its offset.
    paths: &'static [(&'static str, u32)],
}

impl Field {
    /// Returns the offset; `None` if this kernel does not have the field under any known name.
    fn resolve(&self, btf: &Btf<'_>) -> Option<u32> {
        self.paths.iter().find_map(|(path, bytes)| Some(btf.offset(self.container, path)? + bytes))
    }
}

macro_rules! declare {
    (
        fields { $($(#[$field_doc:meta])* $field:ident: $container:literal [$($path:literal $(+ $bytes:literal)?),*])* }
        optional { $($(#[$optional_doc:meta])* $optional:ident: $optional_container:literal [$($optional_path:literal),*])* }
        values { $($(#[$value_doc:meta])* $value:ident)* }
    ) => {
        const FIELDS: &[Field] = &[$(Field {
            global: stringify!($field),
            container: $container,
            paths: &[$(($path, 0 $(+ $bytes)?)),*],
        }),*];
        $(const $optional: Field = Field {
            global: stringify!($optional),
            container: $optional_container,
            paths: &[$(($optional_path, 0)),*],
        };)*
        // One that is never set is an unused constant.
        $(pub(super) const $value: &str = stringify!($value);)*
    };
}

probe_common::kernel_globals!(declare);

const MARK_VICTIM: &str = "btf_trace_mark_victim";
const DROP_REASONS: &str = "skb_drop_reason";
/// Prefix of the names of drop reasons.
const DROP_PREFIX: &str = "SKB_DROP_REASON_";

/// Values of the globals of the kernel programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// Name and value of each global.
    pub(super) globals: Vec<(&'static str, u32)>,
    /// Globals whose field this kernel does not have under any known name.
    pub(super) missing: Vec<&'static str>,
    /// Abilities of the kernel that programs need.
    pub(super) abilities: Abilities,
    /// Names of the kernel's drop reasons; the numbers differ between kernels.
    pub(super) drop_reasons: BTreeMap<u32, String>,
    /// Type section with the functions and typedefs that programs attach to: see [`Btf::skeleton`].
    pub(super) attach_points: Vec<u8>,
}

/// Abilities of a kernel that programs depend on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Abilities {
    /// `bpf_loop` exists (5.17).
    pub(super) bpf_loop: bool,
    /// `bpf_task_pt_regs` exists (5.15).
    pub(super) task_pt_regs: bool,
    /// Memory may be read by address.
    pub(super) probe_read: bool,
}

impl Layout {
    /// Resolves the globals from the kernel's type information. `probe_read`: memory may be read by address.
    /// `attach_points`: names of the functions and typedefs that programs attach to.
    pub(super) fn read(
        data: &[u8],
        probe_read: bool,
        attach_points: &[String],
    ) -> Result<Self, super::btf::BtfError> {
        let mut wanted: BTreeSet<_> = FIELDS.iter().map(|field| field.container).collect();
        wanted.extend([
            NET_COUNT.container,
            ITER_UBUF.container,
            "bpf_func_id",
            "iter_type",
            DROP_REASONS,
            MARK_VICTIM,
        ]);
        wanted.extend(attach_points.iter().map(String::as_str));
        let btf = Btf::parse(data, &wanted)?;
        let helper = |name| btf.enumerator("bpf_func_id", name).is_some();

        let abilities = Abilities {
            bpf_loop: helper("BPF_FUNC_loop"),
            task_pt_regs: helper("BPF_FUNC_task_pt_regs"),
            probe_read,
        };
        let mut layout = Self { abilities, attach_points: btf.skeleton(), ..Self::default() };
        for field in FIELDS {
            match field.resolve(&btf) {
                Some(offset) => layout.globals.push((field.global, offset)),
                None => layout.missing.push(field.global),
            }
        }
        if let Some(offset) = NET_COUNT.resolve(&btf) {
            layout.globals.extend([(NET_COUNT.global, offset), (HAVE_NET_COUNT, 1)]);
        }
        if let Some(offset) = ITER_UBUF.resolve(&btf) {
            layout.globals.push((ITER_UBUF.global, offset));
        }
        let kind = |name| btf.enumerator("iter_type", name).unwrap_or(u32::MAX);
        let reasons = btf.enumerators(DROP_REASONS).into_iter();
        let named = reasons.filter_map(|(name, number)| Some((number, name.strip_prefix(DROP_PREFIX)?)));
        layout.drop_reasons = named.map(|(number, name)| (number, name.to_owned())).collect();
        let rpfilter = layout.drop_reasons.iter().find(|(_, name)| *name == "IP_RPFILTER");
        // Before 5.14 the lowest bit of the kind was the direction.
        let has_direction = btf.offset("iov_iter", "iter_type").is_none();
        layout.globals.extend([
            (ITER_IS_UBUF, kind("ITER_UBUF")),
            (ITER_IS_IOVEC, kind("ITER_IOVEC")),
            (ITER_KIND_MASK, if has_direction { !1 } else { !0 }),
            (DROP_RPFILTER, rpfilter.map_or(u32::MAX, |(number, _)| *number)),
            (NR_CONNECT, u32::try_from(libc::SYS_connect).unwrap_or(u32::MAX)),
            (MARK_VICTIM_TASK, u32::from(btf.takes_pointer(MARK_VICTIM).unwrap_or(false))),
            (HAVE_TASK_PT_REGS, u32::from(abilities.task_pt_regs)),
            (HAVE_PROBE_READ, u32::from(probe_read)),
        ]);
        Ok(layout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_kernel_has_every_field() {
        let data = std::fs::read(super::super::btf::VMLINUX).expect("type information of this kernel");
        let layout = Layout::read(&data, true, &[]).expect("parses");
        assert_eq!(layout.missing, Vec::<&str>::new());
        assert!(layout.globals.contains(&("HAVE_NET_COUNT", 1)));
    }
}
