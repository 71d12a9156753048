//! `probe doctor`: prints what this kernel and these privileges allow, and what observation costs on this host.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use probe_common::Hook;
use probe_engine::Gap;
use serde::Serialize;

use crate::bpf::{self, HOOKS, HookState, Kernel, Unsupported};
use crate::cli::{DoctorArgs, Output};
use crate::exit::Exit;
use crate::node::discovery::Discovery;
use crate::node::names::{self, NameResolution};
use crate::node::{cni_config, cri, processes, targets};
use crate::settings::{Known, Settings};
use crate::sinks::layout::{BAD, FAINT, GOOD, UNSURE, paint, width, wrap};

/// The JSON form of the result. Fields are added and never removed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Findings {
    schema_version: u32,
    kernel: String,
    btf_bytes: Option<u64>,
    lockdown: String,
    /// Why no program can be loaded.
    unsupported: Option<String>,
    attached_in_ms: Option<u128>,
    watched_for_ms: u128,
    hooks: Vec<HookFinding>,
    /// Limitations that remain although all programs are attached.
    #[serde(rename = "less")]
    limitations: Vec<Limitation>,
    /// Settings of the node.
    discovered: Vec<Discovered>,
    /// Contradictions between these settings, one sentence each.
    notes: Vec<String>,
}

/// See [`Findings::discovered`].
#[derive(Debug, Serialize)]
struct Discovered {
    setting: &'static str,
    value: String,
    /// Source of the value: a flag, a file, a default.
    source: String,
}

/// See [`Findings::limitations`].
#[derive(Debug, Serialize)]
struct Limitation {
    signal: &'static str,
    why: String,
}

/// One hook.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct HookFinding {
    hook: &'static str,
    signal: &'static str,
    /// `attached`, `stand-in` (a fallback is in use) or `missing`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<&'static str>,
    events: u64,
    lost: u64,
    /// Mean run time as measured by the kernel; absent without `--stats`.
    #[serde(skip_serializing_if = "Option::is_none")]
    ns_per_run: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runs: Option<u64>,
}

/// Runs the command: loads all programs, counts events for `--for`, and unloads the programs.
pub(crate) async fn run(args: DoctorArgs) -> Result<Exit> {
    let settings = args.node.settings()?;
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let mut findings = Findings {
        schema_version: 1,
        kernel: read("/proc/sys/kernel/osrelease"),
        btf_bytes: std::fs::metadata("/sys/kernel/btf/vmlinux").map(|metadata| metadata.len()).ok(),
        lockdown: match read("/sys/kernel/security/lockdown").split_once('[') {
            Some((_, rest)) => rest.split(']').next().unwrap_or_default().to_owned(),
            None => "not known".to_owned(),
        },
        unsupported: None,
        attached_in_ms: None,
        watched_for_ms: args.watch.as_millis(),
        hooks: Vec::new(),
        limitations: Vec::new(),
        discovered: Vec::new(),
        notes: Vec::new(),
    };
    let processes = processes::scan(&settings);
    let discovery = Discovery::followed(&settings, &processes);
    findings.notes.clone_from(&discovery.notes);
    let hidden = processes::hidden().map(|why| Limitation { signal: Gap::PROCESS_TABLE, why });
    findings.limitations.extend(hidden);
    // The kernel measures as long as this descriptor is open.
    let measure = || aya::sys::enable_stats(aya::sys::Stats::RunTime);
    let _stats =
        args.stats.then(measure).transpose().context("enable run-time statistics of eBPF programs")?;
    match bpf::load(&settings, true) {
        Ok(mut kernel) => {
            findings.attached_in_ms = Some(kernel.took.as_millis());
            let events = watch(&settings, &mut kernel, (&processes, &discovery), args.watch).await?;
            findings.hooks = hooks(&mut kernel, &events)?;
            let limitations =
                kernel.limitations.iter().map(|(signal, why)| Limitation { signal, why: (*why).to_owned() });
            findings.limitations.extend(limitations);
        }
        Err(error) => findings.unsupported = Some(error.downcast::<Unsupported>()?.to_string()),
    }
    // After loading, because the time to load is counted from the start of the process.
    let runtime = match cri::Endpoint::of(&settings, &discovery) {
        Some(endpoint) => Some(container_runtime(&settings, &endpoint).await),
        None => None,
    };
    let servers = api_servers(&settings, &discovery).await;
    let rows = discovery.rows(&settings).into_iter();
    let rows = rows.chain(runtime.map(|row| ("container runtime", row)));
    let rows = rows.chain(servers.into_iter().map(|row| ("API server", row)));
    let row = |(setting, Known { value, source })| Discovered { setting, value, source };
    findings.discovered = rows.map(row).collect();
    match args.output {
        Output::Json => anstream::println!("{}", serde_json::to_string_pretty(&findings)?),
        Output::Text => print(&findings),
    }
    Ok(if findings.unsupported.is_none() { Exit::Ready } else { Exit::Unsupported })
}

/// Queries the container runtime over CRI.
async fn container_runtime(settings: &Settings, endpoint: &cri::Endpoint) -> Known<String> {
    let value = endpoint.ask(settings).await.map_or_else(|why| why, |answer| answer.words());
    Known::of(value, &format_args!("CRI at {}", endpoint.socket))
}

/// Returns the addresses of API servers, and their names with the results of resolving them.
async fn api_servers(settings: &Settings, discovery: &Discovery) -> Vec<Known<String>> {
    let found = targets::find(settings, discovery);
    let addresses = found.targets.iter().filter(|target| target.name.is_none());
    let mut rows: Vec<_> =
        addresses.map(|target| Known::of(target.addr.to_string(), &target.source)).collect();
    for named in &found.names {
        let NameResolution { resolver, result } = names::resolve_name(settings, &named.name).await;
        let value = match result {
            Ok((addresses, _)) => {
                let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                format!("{} = {}, port {}", named.name, addresses.join(", "), named.port)
            }
            Err(failure) => format!("{}: {resolver} {}", named.name, failure.words()),
        };
        rows.push(Known::of(value, &named.source));
    }
    for gap in &found.gaps {
        rows.push(Known::of("not known".to_owned(), &gap.why));
    }
    rows
}

/// Observes what the agent would observe. Returns the number of events of each hook.
async fn watch(
    settings: &Settings,
    kernel: &mut Kernel,
    (processes, discovery): (&[processes::Found], &Discovery),
    time: std::time::Duration,
) -> Result<BTreeMap<Hook, u64>> {
    kernel.watch.set_names(&processes::watch_names(), &cni_config::plugin_names(settings))?;
    for process in processes {
        kernel.watch.add_process(process.actor.pid, || true)?;
    }
    let addresses: Vec<_> =
        targets::find(settings, discovery).targets.iter().map(|target| target.addr).collect();
    kernel.watch.set_targets(&addresses, &[])?;
    let mut events = BTreeMap::new();
    let end = tokio::time::sleep(time);
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => return Ok(events),
            ready = kernel.reader.wait() => {
                ready?;
                while kernel.reader.take_batch(|event| *events.entry(event.hook()).or_default() += 1) {}
            }
        }
    }
}

fn hooks(kernel: &mut Kernel, events: &BTreeMap<Hook, u64>) -> Result<Vec<HookFinding>> {
    let mut missed = kernel.skips.take_losses()?;
    missed.retain(|missed| missed.how == bpf::How::Lost);
    missed.extend(kernel.skips.take_skipped_runs());
    let rows = kernel.hooks.iter().zip(HOOKS);
    let finding = |(status, row): (&bpf::HookStatus, &bpf::Row)| {
        let mut finding = HookFinding {
            hook: status.hook.name(),
            signal: row.signal,
            state: "missing",
            source: None,
            why: None,
            cost: None,
            events: events.get(&status.hook).copied().unwrap_or(0),
            lost: missed.iter().filter(|missed| missed.hook == status.hook).map(|missed| missed.count).sum(),
            ns_per_run: None,
            runs: None,
        };
        match &status.state {
            HookState::Attached { source, is_fallback, .. } => {
                finding.state = if *is_fallback { "stand-in" } else { "attached" };
                finding.source = Some(source.clone());
                if let Some(runs) = kernel.skips.runs(status.hook).filter(|runs| runs.count > 0) {
                    finding.ns_per_run = Some(runs.ns / runs.count);
                    finding.runs = Some(runs.count);
                }
            }
            HookState::Missing { why, cost } => {
                finding.why = Some(why.clone());
                finding.cost = Some(cost);
            }
        }
        finding
    };
    Ok(rows.map(finding).collect())
}

/// Prints each setting, its value and its source in columns.
fn print_discovered(findings: &Findings) {
    let longest = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or_default();
    let rows = &findings.discovered;
    let name = longest(&mut rows.iter().map(|row| row.setting.len()));
    let value = longest(&mut rows.iter().map(|row| row.value.len())).min(56);
    anstream::println!("{}", paint(FAINT, &format!("{:<name$}  {:<value$}  source", "discovered", "value")));
    for Discovered { setting, value: text, source } in rows {
        anstream::println!("{setting:<name$}  {text:<value$}  {}", paint(FAINT, source));
    }
    for note in &findings.notes {
        anstream::println!("{}", paint(UNSURE, note));
    }
    anstream::println!();
}

fn print(findings: &Findings) {
    print_discovered(findings);
    anstream::println!("kernel    {}", findings.kernel);
    let types =
        findings.btf_bytes.map_or("missing".to_owned(), |bytes| format!("{} KiB of BTF", bytes / 1024));
    anstream::println!("types     {types}");
    anstream::println!("lockdown  {}", findings.lockdown);
    if let Some(why) = &findings.unsupported {
        anstream::println!("{}", paint(BAD, &format!("eBPF      {why}")));
        print_limitations(findings);
        return;
    }
    anstream::println!(
        "eBPF      {} hooks in {} ms, watched for {:.1} s\n",
        findings.hooks.len(),
        findings.attached_in_ms.unwrap_or(0),
        std::time::Duration::from_millis(u64::try_from(findings.watched_for_ms).unwrap_or(0)).as_secs_f64()
    );
    let source = |hook: &'_ HookFinding| hook.source.clone().unwrap_or_else(|| "missing".to_owned());
    let wide = findings.hooks.iter().map(|hook| source(hook).len()).max().unwrap_or_default();
    let head =
        format!("{:<18} {:<wide$} {:>7} {:>5} {:>6}", "signal", "watched by", "events", "lost", "ns/run");
    anstream::println!("{}", paint(FAINT, &head));
    for hook in &findings.hooks {
        let style = if hook.state == "attached" { GOOD } else { UNSURE };
        let source = format!("{:<wide$}", source(hook));
        let ns = hook.ns_per_run.map_or_else(|| "-".to_owned(), |ns| ns.to_string());
        anstream::println!(
            "{:<18} {} {:>7} {:>5} {ns:>6}",
            hook.signal,
            paint(style, &source),
            hook.events,
            hook.lost
        );
        if let (Some(why), Some(cost)) = (&hook.why, hook.cost) {
            for line in wrap(&format!("{why}; not observed: {cost}"), width().saturating_sub(4)) {
                anstream::println!("    {}", paint(FAINT, &line));
            }
        }
    }
    print_limitations(findings);
}

fn print_limitations(findings: &Findings) {
    for limitation in &findings.limitations {
        anstream::println!("{}", paint(UNSURE, limitation.signal));
        for line in wrap(&limitation.why, width().saturating_sub(4)) {
            anstream::println!("    {}", paint(FAINT, &line));
        }
    }
}
