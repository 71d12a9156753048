//! Reads of kernel memory.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_get_current_task_btf};

use crate::layout::{FDT_FD, FILES_FDT, HAVE_TASK_BTF, TASK_FILES, get};

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

/// As [`field`], for a pointer; `None` when it is null.
///
/// # Safety
/// As [`field`].
#[inline(always)]
pub(crate) unsafe fn pointer(base: *const u8, offset: &'static u32) -> Option<*const u8> {
    // SAFETY: by the caller.
    let pointer: *const u8 = unsafe { field(base, offset) };
    if pointer.is_null() { None } else { Some(pointer) }
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

/// The task that runs now. Its fields are read by [`of_current`] only.
#[inline(always)]
pub(crate) fn current() -> *const u8 {
    if get(&HAVE_TASK_BTF) != 0 {
        // SAFETY: no precondition; the branch is only verified where the helper exists.
        unsafe { bpf_get_current_task_btf() as *const u8 }
    } else {
        // SAFETY: no precondition.
        unsafe { bpf_get_current_task() as *const u8 }
    }
}

/// A field behind a pointer that hangs from [`current`]: typed where the kernel can, else by address.
///
/// # Safety
/// As [`field`], with `base` from [`current`] or from this function.
#[inline(always)]
pub(crate) unsafe fn of_current<T: Copy + Default>(base: *const u8, offset: &'static u32) -> T {
    if get(&HAVE_TASK_BTF) != 0 {
        // SAFETY: by the caller.
        unsafe { field(base, offset) }
    } else {
        // SAFETY: the helper checks the address.
        unsafe { bpf_probe_read_kernel(base.add(get(offset)).cast::<T>()) }.unwrap_or_default()
    }
}

/// Address of the open file behind one of the first three descriptors of the running task; 0 when it has none.
#[inline(always)]
pub(crate) fn file_of_current(descriptor: usize) -> u64 {
    // SAFETY: the chain hangs from `current` and each link is checked; the array of descriptors is read
    // through a helper that checks the address, and always has room for these.
    unsafe {
        let files: u64 = of_current(current(), &TASK_FILES);
        if files == 0 {
            return 0;
        }
        let fdt: u64 = of_current(files as *const u8, &FILES_FDT);
        if fdt == 0 {
            return 0;
        }
        let descriptors: u64 = of_current(fdt as *const u8, &FDT_FD);
        bpf_probe_read_kernel((descriptors as *const u64).wrapping_add(descriptor)).unwrap_or(0)
    }
}
