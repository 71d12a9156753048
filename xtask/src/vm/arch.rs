//! The differences between the two architectures.

use std::process::Command;

/// Architecture of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arch {
    /// x86-64, the architecture of the host.
    Amd64,
    /// AArch64, cross-compiled.
    Arm64,
}

/// What a machine's clock counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clock {
    Time,
    Instructions,
}

impl Arch {
    /// Returns Debian's name for it.
    pub(crate) const fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Returns the name of Rust's target.
    pub(crate) const fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// Sets the variables with which cargo links statically for it, and with which the C code of dependencies is compiled.
    pub(crate) fn cargo(self, cargo: &mut Command) {
        let upper = self.target().to_uppercase().replace('-', "_");
        cargo.env(format!("CARGO_TARGET_{upper}_RUSTFLAGS"), "-C target-feature=+crt-static");
        if self == Self::Arm64 {
            cargo.env(format!("CARGO_TARGET_{upper}_LINKER"), "aarch64-linux-gnu-gcc");
            cargo.env(format!("CC_{}", self.target().replace('-', "_")), "aarch64-linux-gnu-gcc");
        }
    }

    /// Returns a command that starts its machine. It is emulated, because KVM is not available on every host.
    pub(super) fn qemu(self, clock: Clock) -> Command {
        let (program, machine) = match self {
            // An old processor, because the extensions of newer ones are slow to emulate. Without cmpxchg16b, whose emulation
            // occasionally crashes a kernel with a double fault.
            Self::Amd64 => ("qemu-system-x86_64", ["-machine", "pc", "-cpu", "Nehalem,-cx16"]),
            Self::Arm64 => ("qemu-system-aarch64", ["-machine", "virt", "-cpu", "max"]),
        };
        let mut qemu = Command::new(program);
        qemu.args(machine);
        match clock {
            Clock::Time => qemu.args(["-accel", "tcg,thread=multi"]),
            // One nanosecond for each instruction; sleeping takes no time.
            Clock::Instructions => qemu.args(["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]),
        };
        qemu
    }

    /// Returns the serial ports of the kernel's console and of the results. The arm64 machine has one port for both.
    pub(super) const fn ports(self) -> (&'static str, &'static str) {
        match self {
            Self::Amd64 => ("ttyS0", "ttyS1"),
            Self::Arm64 => ("ttyAMA0", "ttyAMA0"),
        }
    }
}
