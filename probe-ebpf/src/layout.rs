//! Offsets of kernel fields and abilities of the running kernel; see [`probe_common::kernel_globals`].
//!
//! The loader sets them before the programs are verified, so the verifier treats them as constants and does
//! not follow branches that they rule out.

macro_rules! statics {
    (
        fields { $($(#[$field_doc:meta])* $field:ident: $struct:literal [$($path:tt)*])* }
        optional { $($(#[$optional_doc:meta])* $optional:ident: $optional_struct:literal [$($optional_path:tt)*])* }
        values { $($(#[$value_doc:meta])* $value:ident)* }
    ) => {
        statics! { $($(#[$field_doc])* $field)* $($(#[$optional_doc])* $optional)* $($(#[$value_doc])* $value)* }
    };
    ($($(#[$doc:meta])* $name:ident)*) => {
        $($(#[$doc])* #[unsafe(no_mangle)] pub(crate) static $name: u32 = 0;)*
    };
}

probe_common::kernel_globals!(statics);

/// Returns the value that the loader has set.
#[inline(always)]
pub(crate) fn get(global: &'static u32) -> usize {
    // SAFETY: a live static. Volatile, because the compiler would use the initial value instead of that of
    // the loader.
    unsafe { core::ptr::read_volatile(global) as usize }
}
