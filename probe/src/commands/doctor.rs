//! `probe doctor`: what this kernel and this process allow.

use anyhow::Result;
use serde_json::json;

use crate::bpf::{self, HOOKS, HookState, Unsupported};
use crate::cli::{DoctorArgs, Output};
use crate::exit::Exit;
use crate::sinks::layout::{BAD, FAINT, GOOD, UNSURE, paint, width, wrap};

/// See the module. Loads everything once and drops it again.
#[expect(clippy::unused_async, reason = "the ring buffer registers with the loop")]
pub(crate) async fn run(args: DoctorArgs) -> Result<Exit> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let kernel = read("/proc/sys/kernel/osrelease");
    let btf = std::fs::metadata("/sys/kernel/btf/vmlinux").map(|metadata| metadata.len()).ok();
    let lockdown = match read("/sys/kernel/security/lockdown").split_once('[') {
        Some((_, rest)) => rest.split(']').next().unwrap_or_default().to_owned(),
        None => "not known".to_owned(),
    };
    let loaded = match bpf::load(probe_common::RING_BYTES) {
        Ok(kernel) => Ok((kernel.hooks.clone(), kernel.took)),
        Err(error) => Err(error.downcast::<Unsupported>()?.to_string()),
    };
    let exit = if loaded.is_ok() { Exit::Ready } else { Exit::Unsupported };
    if args.output == Output::Json {
        let hooks: Vec<_> = loaded
            .as_ref()
            .map(|(hooks, _)| hooks.as_slice())
            .unwrap_or_default()
            .iter()
            .map(|status| match &status.state {
                HookState::Attached => json!({"hook": status.hook.name(), "state": "attached"}),
                HookState::Missing { why, cost } => {
                    json!({"hook": status.hook.name(), "state": "missing", "why": why, "cost": cost})
                }
            })
            .collect();
        let value = json!({
            "schemaVersion": 1, "kernel": kernel, "btfBytes": btf, "lockdown": lockdown,
            "unsupported": loaded.as_ref().err(), "hooks": hooks,
        });
        anstream::println!("{}", serde_json::to_string_pretty(&value)?);
        return Ok(exit);
    }
    anstream::println!("kernel    {kernel}");
    anstream::println!(
        "types     {}",
        btf.map_or("missing".to_owned(), |bytes| format!("{} KiB of BTF", bytes / 1024))
    );
    anstream::println!("lockdown  {lockdown}");
    match loaded {
        Err(why) => anstream::println!("{}", paint(BAD, &format!("eBPF      {why}"))),
        Ok((hooks, took)) => {
            anstream::println!("eBPF      {} hooks in {} ms\n", hooks.len(), took.as_millis());
            for (status, row) in hooks.iter().zip(HOOKS) {
                let name = format!("{:<22} {:<18}", status.hook.name(), row.signal);
                match &status.state {
                    HookState::Attached => anstream::println!("{name} {}", paint(GOOD, "attached")),
                    HookState::Missing { why, cost } => {
                        anstream::println!("{name} {}", paint(UNSURE, "missing"));
                        for line in wrap(&format!("{why}; not seen: {cost}"), width().saturating_sub(4)) {
                            anstream::println!("    {}", paint(FAINT, &line));
                        }
                    }
                }
            }
        }
    }
    Ok(exit)
}
