//! Reads of kernel memory.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_get_current_task_btf};

use crate::layout::{FDT_FD, FILES_FDT, HAVE_PROBE_READ, TASK_FILES, get};

/// A field behind a pointer that the verifier knows the type of; it checks bounds and makes faults read 0.
///
/// # Safety
/// `base` comes from a typed program argument or from such a load and is not null; `offset` is the one of
/// the field that `T` is.
#[inline(always)]
pub(crate) unsafe fn field<T: Copy>(base: *const u8, offset: &'static u32) -> T {
    // SAFETY: the verifier refuses the program unless this is a load inside the pointer's own type.
    unsafe { core::ptr::read_volatile(base.add(get(offset)).cast::<T>()) }
}

/// What a pointer in one of the kernel's structures leads to: an address where memory may be read by address, a typed
/// pointer where it may not.
///
/// Addresses, although a typed load costs less: for each typed pointer that is loaded through an argument, the verifiers
/// from 6.2 on look four times through all type information of the kernel, and do so anew on every path. That was a third of
/// the start.
#[derive(Clone, Copy)]
pub(crate) struct Far(*const u8);

impl Far {
    /// The task that runs now.
    #[inline(always)]
    pub(crate) fn current() -> Self {
        if get(&HAVE_PROBE_READ) != 0 {
            // SAFETY: no precondition.
            Self(unsafe { bpf_get_current_task() } as *const u8)
        } else {
            Self(current())
        }
    }

    /// A field of it; what cannot be read is 0.
    ///
    /// # Safety
    /// `offset` is that of a field of this structure, of type `T`.
    #[inline(always)]
    pub(crate) unsafe fn field<T: Copy + Default>(self, offset: &'static u32) -> T {
        // SAFETY: by the caller.
        unsafe { self.at(get(offset)) }
    }

    /// As [`Self::field`], so many bytes into it.
    ///
    /// # Safety
    /// As [`Self::field`].
    #[inline(always)]
    pub(crate) unsafe fn at<T: Copy + Default>(self, bytes: usize) -> T {
        if get(&HAVE_PROBE_READ) != 0 {
            // SAFETY: the helper checks the address.
            unsafe { bpf_probe_read_kernel(self.0.wrapping_add(bytes).cast::<T>()) }.unwrap_or_default()
        } else {
            // SAFETY: by the caller; the verifier refuses the program unless this is a load inside the type.
            unsafe { core::ptr::read_volatile(self.0.add(bytes).cast::<T>()) }
        }
    }

    /// What a pointer in it leads to; `None` when that is null.
    ///
    /// # Safety
    /// As [`Self::field`], with a pointer for `T`.
    #[inline(always)]
    pub(crate) unsafe fn pointer(self, offset: &'static u32) -> Option<Self> {
        // SAFETY: by the caller.
        let to: u64 = unsafe { self.field(offset) };
        if to == 0 { None } else { Some(Self(to as *const u8)) }
    }

    /// Its address, to know it again.
    #[inline(always)]
    pub(crate) fn address(self) -> u64 {
        number(self.0 as u64)
    }
}

/// What a pointer in a typed argument leads to; `None` when it is null.
///
/// # Safety
/// As [`field`], with a pointer for `T`.
#[inline(always)]
pub(crate) unsafe fn pointer(base: *const u8, offset: &'static u32) -> Option<Far> {
    let base = if get(&HAVE_PROBE_READ) != 0 { number(base as u64) as *const u8 } else { base };
    // SAFETY: by the caller.
    unsafe { Far(base).pointer(offset) }
}

/// A typed pointer as a number. The verifier lets nobody calculate with one; but whoever may see addresses at all may
/// change its sign, and what comes of that is a number.
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

/// The task that runs now, for helpers that take one.
#[inline(always)]
pub(crate) fn current() -> *const u8 {
    // SAFETY: no precondition; only verified where the helper exists (5.11).
    unsafe { bpf_get_current_task_btf() as *const u8 }
}

/// The open file behind one of the first three descriptors of the running task.
#[inline(always)]
pub(crate) fn file_of_current(descriptor: usize) -> Option<Far> {
    // SAFETY: the chain hangs from the running task and each link is checked; the array of descriptors always has room for
    // these.
    unsafe {
        let descriptors = Far::current().pointer(&TASK_FILES)?.pointer(&FILES_FDT)?.pointer(&FDT_FD)?;
        let file: u64 = descriptors.at(descriptor * size_of::<u64>());
        if file == 0 { None } else { Some(Far(file as *const u8)) }
    }
}
