//! Reads of kernel memory.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_get_current_task_btf};

use crate::layout::{FDT_FD, FILES_FDT, HAVE_PROBE_READ, TASK_FILES, get};

/// Reads a field behind a typed pointer. The verifier checks bounds, and a load that faults yields 0.
///
/// # Safety
/// `base` is a typed argument of the program, or was loaded through one, and is not null; `offset` is that of
/// a field of type `T`.
#[inline(always)]
pub(crate) unsafe fn field<T: Copy>(base: *const u8, offset: &'static u32) -> T {
    // SAFETY: by the caller; the verifier rejects the program unless this is a load inside the type of the
    // pointer.
    unsafe { core::ptr::read_volatile(base.add(get(offset)).cast::<T>()) }
}

/// A pointer to a structure of the kernel: an address where memory may be read by address, a typed pointer
/// where it may not.
///
/// Addresses are preferred although a typed load costs less: for each typed pointer that is loaded through an
/// argument, verifiers from Linux 6.2 on search the kernel's type information four times, on every path. That
/// was a third of the start time.
#[derive(Clone, Copy)]
pub(crate) struct KernelPtr(*const u8);

impl KernelPtr {
    /// Returns the running task.
    #[inline(always)]
    pub(crate) fn current_task() -> Self {
        if get(&HAVE_PROBE_READ) != 0 {
            // SAFETY: no precondition.
            Self(unsafe { bpf_get_current_task() } as *const u8)
        } else {
            Self(current_task())
        }
    }

    /// Reads a field of the structure; 0 if it cannot be read.
    ///
    /// # Safety
    /// `offset` is that of a field of this structure, of type `T`.
    #[inline(always)]
    pub(crate) unsafe fn field<T: Copy + Default>(self, offset: &'static u32) -> T {
        // SAFETY: by the caller.
        unsafe { self.at(get(offset)) }
    }

    /// As [`Self::field`], with the offset in bytes.
    ///
    /// # Safety
    /// As [`Self::field`].
    #[inline(always)]
    pub(crate) unsafe fn at<T: Copy + Default>(self, bytes: usize) -> T {
        if get(&HAVE_PROBE_READ) != 0 {
            // SAFETY: the helper checks the address.
            unsafe { bpf_probe_read_kernel(self.0.wrapping_add(bytes).cast::<T>()) }.unwrap_or_default()
        } else {
            // SAFETY: by the caller; the verifier rejects the program unless this is a load inside the type.
            unsafe { core::ptr::read_volatile(self.0.add(bytes).cast::<T>()) }
        }
    }

    /// Reads a pointer field of the structure; `None` if it is null.
    ///
    /// # Safety
    /// As [`Self::field`], with a pointer for `T`.
    #[inline(always)]
    pub(crate) unsafe fn pointer(self, offset: &'static u32) -> Option<Self> {
        // SAFETY: by the caller.
        let to: u64 = unsafe { self.field(offset) };
        if to == 0 { None } else { Some(Self(to as *const u8)) }
    }

    /// Returns the address, for comparison.
    #[inline(always)]
    pub(crate) fn address(self) -> u64 {
        number(self.0 as u64)
    }
}

/// Reads a pointer field behind a typed pointer; `None` if it is null.
///
/// # Safety
/// As [`field`], with a pointer for `T`.
#[inline(always)]
pub(crate) unsafe fn pointer(base: *const u8, offset: &'static u32) -> Option<KernelPtr> {
    let base = if get(&HAVE_PROBE_READ) != 0 { number(base as u64) as *const u8 } else { base };
    // SAFETY: by the caller.
    unsafe { KernelPtr(base).pointer(offset) }
}

/// Converts a typed pointer to a number. The verifier rejects arithmetic on typed pointers except for a
/// change of sign, where programs may see addresses at all, and takes the result of that for a number.
#[inline(always)]
pub(crate) fn number(pointer: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    let pointer = {
        let mut pointer = pointer;
        // SAFETY: one instruction between registers.
        unsafe { core::arch::asm!("{0} = -{0}", inout(reg) pointer, options(pure, nomem, nostack)) };
        pointer.wrapping_neg()
    };
    pointer
}

/// Returns the running task as a typed pointer, for helpers that take one.
#[inline(always)]
pub(crate) fn current_task() -> *const u8 {
    // SAFETY: no precondition; only verified where the helper exists (5.11).
    unsafe { bpf_get_current_task_btf() as *const u8 }
}

/// Returns the open file behind one of the first three descriptors of the running task.
#[inline(always)]
pub(crate) fn file_of_current_task(descriptor: usize) -> Option<KernelPtr> {
    // SAFETY: the pointers start at the running task, and each is checked for null; the array of descriptors
    // always has room for the first three.
    unsafe {
        let descriptors =
            KernelPtr::current_task().pointer(&TASK_FILES)?.pointer(&FILES_FDT)?.pointer(&FDT_FD)?;
        let file: u64 = descriptors.at(descriptor * size_of::<u64>());
        if file == 0 { None } else { Some(KernelPtr(file as *const u8)) }
    }
}
