//! The programs that run inside the kernel: they see and do not judge.
//!
//! Read-only: no packet, socket or namespace is ever changed. Each hook is a shell around a `try_` function
//! and counts what it could not report ([`skip`]). Fields of kernel structures are read at offsets that the
//! loader resolves from the running kernel's BTF ([`layout`]).
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// For one atomic addition.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
// On the host this crate is only checked, never run.
#![cfg_attr(
    not(target_arch = "bpf"),
    allow(dead_code, unused_imports, reason = "programs are for the BPF target")
)]
// Kernel fields are read with the widths that the kernel gives them, records are written in words (the ring
// gives memory aligned to eight bytes), contexts come by value from the macros, offsets as the statics that the
// loader writes, and every program is `#[inline(always)]` below its entry, because the verifier looks at one function.
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
