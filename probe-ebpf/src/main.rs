//! The programs that run inside the kernel. They report events and do not interpret them.
//!
//! The programs are read-only: they never change a packet, socket or namespace. A hook that cannot report an
//! event counts the reason ([`skip`]). Fields of kernel structures are read at offsets that the loader
//! resolves from the running kernel's BTF ([`layout`]).
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// Needed for inline assembly: one atomic addition and one change of sign.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
// For the host, this crate is only checked and never run.
#![cfg_attr(
    not(target_arch = "bpf"),
    allow(dead_code, unused_imports, reason = "programs are for the BPF target")
)]
// Kernel fields are read with the widths that the kernel gives them, some byte fields of records are written
// in words (they are aligned to eight bytes), the macros pass contexts by value, offsets are passed as the
// statics that the loader sets, and functions below the entry of a program are `#[inline(always)]`, because
// the verifier examines one function at a time.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_ptr_alignment,
    clippy::cast_sign_loss,
    clippy::inline_always,
    clippy::needless_pass_by_value,
    clippy::trivially_copy_pass_by_ref,
    reason = "kernel ABI and verifier"
)]

mod connects;
mod current;
mod filter;
mod hooks;
mod layout;
mod maps;
mod origin;
mod processes;
mod read;
mod report;
mod skip;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The tracing helpers are for GPL-compatible programs only; see `LICENSES.md`.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
