//! What differs between the two architectures.

use std::process::Command;

/// Of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arch {
    /// x86-64, as what builds this.
    Amd64,
    /// AArch64, built across.
    Arm64,
}

/// What a machine's clock counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clock {
    Time,
    Instructions,
}

impl Arch {
    /// As Debian calls it.
    pub(crate) const fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As Rust calls it.
    pub(crate) const fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// Tells cargo how to link statically for it, and the compilers of dependencies what they are for.
    pub(crate) fn cargo(self, cargo: &mut Command) {
        let upper = self.target().to_uppercase().replace('-', "_");
        cargo.env(format!("CARGO_TARGET_{upper}_RUSTFLAGS"), "-C target-feature=+crt-static");
        if self == Self::Arm64 {
            cargo.env(format!("CARGO_TARGET_{upper}_LINKER"), "aarch64-linux-gnu-gcc");
            cargo.env(format!("CC_{}", self.target().replace('-', "_")), "aarch64-linux-gnu-gcc");
        }
    }

    /// The machine: emulated, because not every machine that builds this can do it another way.
    pub(super) fn qemu(self, clock: Clock) -> Command {
        let (program, machine) = match self {
            // An old one: what newer ones add is emulated slowly. Without cmpxchg16b, whose emulation ends a kernel
            // with a double fault now and then.
            Self::Amd64 => ("qemu-system-x86_64", ["-machine", "pc", "-cpu", "Nehalem,-cx16"]),
            Self::Arm64 => ("qemu-system-aarch64", ["-machine", "virt", "-cpu", "max"]),
        };
        let mut qemu = Command::new(program);
        qemu.args(machine);
        match clock {
            Clock::Time => qemu.args(["-accel", "tcg,thread=multi"]),
            // A nanosecond for each; waiting takes no time.
            Clock::Instructions => qemu.args(["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]),
        };
        qemu
    }

    /// Where the kernel talks, and where the results go: arm64's machine has one port for both.
    pub(super) const fn ports(self) -> (&'static str, &'static str) {
        match self {
            Self::Amd64 => ("ttyS0", "ttyS1"),
            Self::Arm64 => ("ttyAMA0", "ttyAMA0"),
        }
    }
}
