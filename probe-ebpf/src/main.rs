//! The programs that run inside the kernel: they see and do not judge.
//!
//! Read-only: no packet, socket or namespace is ever changed. Each hook is a shell around a `try_` function
//! and counts what it could not report ([`skip`]). Fields of kernel structures are read at offsets that the
//! loader resolves from the running kernel's BTF ([`layout`]).
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// On the host this crate is only checked, never run.
#![cfg_attr(
    not(target_arch = "bpf"),
    allow(dead_code, unused_imports, reason = "programs are for the BPF target")
)]

mod emit;
mod filter;
mod hooks;
mod layout;
mod maps;
mod read;
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
