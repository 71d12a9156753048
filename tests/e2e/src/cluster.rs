//! A control plane on one host, a node on another: the real programs, on nothing but this machine.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use kernel_tests::{API, Namespace, install_plugins, run, spawn};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::dialect::{self, Dialect};
use crate::image;
use crate::pki::{self, Authority, Identity};
use crate::place::{LAYERS, Place, with_us};

/// Name of the node.
pub(crate) const NODE: &str = "node-1";
/// The address of the Service `kubernetes`.
pub(crate) const SERVICE: &str = "10.96.0.1";
/// Until when certificates are valid that should be.
pub(crate) const VALID: time::Duration = time::Duration::days(1);

/// Set when the user wants to stop.
pub(crate) static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The user wants to stop.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// A program that runs; ended when dropped.
pub(crate) struct Running {
    child: Child,
}

impl Running {
    /// Starts it; what it says goes to `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let output = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = spawn(command)?;
        Ok(Self { child })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has exited by itself.
    pub(crate) fn has_exited(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: no precondition; the process is our child and was not waited for.
        unsafe { libc::kill(self.child.id().cast_signed(), signal) };
    }

    /// Its resident memory in MiB as the kernel counts it: all, and without the pages of its own file, of which a
    /// debug build has many.
    pub(crate) fn memory_mib(&self) -> Option<[f64; 2]> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let mib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            Some(f64::from(line.split_whitespace().next()?.parse::<u32>().ok()?) / 1024.0)
        };
        Some([mib("VmRSS:")?, mib("RssAnon:")?])
    }

    /// Ends it as an init system would, and waits. kube-apiserver lets the watches of its clients end first: a minute.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.signal(libc::SIGTERM);
        until("the program ends", Duration::from_secs(90), || Ok(self.child.try_wait()?.map(|_| ())))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks until there is an answer.
pub(crate) fn until<T>(
    what: &str,
    patience: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        ensure!(!interrupted(), "interrupted");
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("waited {} s in vain until {what}", patience.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Everything.
pub(crate) struct Cluster {
    assets: PathBuf,
    pub(crate) dialect: Dialect,
    /// etcd.
    pub(crate) etcd: Option<Running>,
    /// kube-apiserver.
    pub(crate) api: Option<Running>,
    /// containerd.
    pub(crate) runtime: Option<Running>,
    /// kubelet.
    pub(crate) kubelet: Option<Running>,
    /// What runs on the node under another's name.
    pub(crate) lasting: Vec<Running>,
    /// ovsdb-server.
    database: Option<Running>,
    /// ovs-vswitchd.
    pub(crate) switch: Option<Running>,
    /// The node.
    pub(crate) place: Place,
    /// The other host.
    pub(crate) control: Namespace,
    /// Signs certificates.
    pub(crate) authority: Authority,
    dir: TempDir,
}

impl Cluster {
    /// Both hosts, the files of both, and nothing that runs.
    pub(crate) fn new(assets: &Path) -> Result<Self> {
        let (netns, control) = Namespace::pair()?;
        let dir = TempDir::with_prefix("nrlab-e2e-").context("make a directory for the cluster")?;
        let place = Place::new(netns, dir.path())?;
        let cluster = Self {
            assets: assets.to_owned(),
            dialect: Dialect::ask(&assets.join("kubelet"))?,
            etcd: None,
            api: None,
            runtime: None,
            kubelet: None,
            lasting: Vec::new(),
            database: None,
            switch: None,
            place,
            control,
            authority: Authority::new()?,
            dir,
        };
        cluster.files()?;
        Ok(cluster)
    }

    /// Of the harness, not of the node.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn asset(&self, name: &str) -> PathBuf {
        self.assets.join(name)
    }

    fn files(&self) -> Result<()> {
        let server = self.authority.server(&["10.99.0.1", SERVICE, "127.0.0.1"])?;
        pki::write(&self.file("ca.crt"), &self.authority.certificate)?;
        pki::write(&self.file("server.crt"), &server.certificate)?;
        pki::write(&self.file("server.key"), &server.key)?;
        pki::write(&self.file("server.pub"), &server.public)?;
        let admin = self.authority.client("admin", "system:masters", VALID)?;
        let server = format!("https://{API}");
        pki::write(
            &self.file("admin.conf"),
            &pki::kubeconfig(&server, &self.authority, &pki::inline(&admin)),
        )?;
        for dir in [CONF_DIR, "/opt/cni/bin", "/run/netns", "/var/lib/kubelet/pki", "/etc/kubernetes"] {
            fs::create_dir_all(self.place.path(dir))?;
        }
        install_plugins(&dialect::plugins(), &self.place.path("/opt/cni/bin"))?;
        self.kubelet_identity(VALID)?;
        self.kubelet_trusts(&self.authority)?;
        let mut config = json!({
            "kind": "KubeletConfiguration",
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupsPerQOS": false,
            "enforceNodeAllocatable": [],
            "failSwapOn": false,
            "clusterDNS": ["10.96.0.10"],
            "nodeStatusUpdateFrequency": "2s",
            "oomScoreAdj": 0,
            "maxOpenFiles": 20000,
            // The one image is nowhere else: it stays, however full the disk is.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"imagefs.available": "0%", "nodefs.available": "0%", "memory.available": "0%"},
        });
        self.dialect.kubelet_config(&mut config);
        pki::write(&self.place.path("/var/lib/kubelet/config.yaml"), &config.to_string())?;
        self.read_networks_from(CONF_DIR)
    }

    /// From where the next containerd reads its networks.
    pub(crate) fn read_networks_from(&self, conf_dir: &str) -> Result<()> {
        let config = self.dialect.containerd_config(Path::new(LAYERS), conf_dir);
        pki::write(&self.file("containerd.toml"), &config).map(|_| ())
    }

    /// The kubelet's certificate and key, replaced as the kubelet replaces them.
    pub(crate) fn kubelet_identity(&self, left: time::Duration) -> Result<()> {
        let user = format!("system:node:{NODE}");
        let identity = self.authority.client(&user, "system:nodes", left)?;
        self.put_identity(&identity)
    }

    /// The kubelet's kubeconfig, with the CA of `authority`.
    pub(crate) fn kubelet_trusts(&self, authority: &Authority) -> Result<()> {
        let user = json!({"client-certificate": CERTIFICATE, "client-key": CERTIFICATE});
        let config = pki::kubeconfig(&format!("https://{API}"), authority, &user);
        pki::write(&self.place.path("/etc/kubernetes/kubelet.conf"), &config).map(|_| ())
    }

    /// As [`Self::kubelet_identity`], signed by an authority that the API server does not know.
    pub(crate) fn unknown_identity(&self) -> Result<()> {
        let user = format!("system:node:{NODE}");
        self.put_identity(&Authority::new()?.client(&user, "system:nodes", VALID)?)
    }

    fn put_identity(&self, identity: &Identity) -> Result<()> {
        let current = self.place.path(CERTIFICATE);
        let new = pki::write(&current.with_extension("new"), &identity.together())?;
        fs::rename(new, current).context("replace the kubelet's certificate")
    }

    /// A network that works: bridge and host-local on `subnet`.
    pub(crate) fn install_network(&self, subnet: &str) -> Result<()> {
        self.write_network("10-pods.conflist", &network(subnet).to_string())
    }

    /// Puts a file into the configuration directory, as an installer does.
    pub(crate) fn write_network(&self, name: &str, content: &str) -> Result<()> {
        let dir = self.place.path(CONF_DIR);
        let new = pki::write(&dir.join(".new"), content)?;
        fs::rename(new, dir.join(name)).with_context(|| format!("put {name} into place"))
    }

    /// Takes it away.
    pub(crate) fn remove_network(&self, name: &str) -> Result<()> {
        fs::remove_file(self.place.path(CONF_DIR).join(name)).context("remove the configuration")
    }

    /// The same by a process of this name: its owner may take a file away. It lives on for a moment, for who has ended
    /// cannot be looked up.
    pub(crate) fn remove_network_as(&self, program: &str, name: &str) -> Result<()> {
        let mut perl = self.renamed("/usr/bin/perl", program)?;
        run(perl.args(["-e", "unlink shift or die; sleep 1"]).arg(format!("{CONF_DIR}/{name}"))).map(|_| ())
    }

    /// A program of this machine that will run on the node under another name: processes are told by theirs.
    pub(crate) fn renamed(&self, program: &str, name: &str) -> Result<Command> {
        let original = Path::new(program).file_name().context("a program has a name")?.display();
        let path = format!("/opt/cni/{original}/{name}");
        fs::create_dir_all(self.place.path(&format!("/opt/cni/{original}")))?;
        fs::copy(program, self.place.path(&path)).with_context(|| format!("copy {program}"))?;
        self.place.command(path)
    }

    /// etcd, with an empty or an older store.
    pub(crate) fn start_etcd(&mut self) -> Result<()> {
        let mut command = self.control.command("etcd")?;
        command.arg("--data-dir").arg(self.file("etcd")).args([
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--logger=zap",
        ]);
        self.etcd = Some(Running::start(with_us(&mut command), &self.file("etcd.log"))?);
        Ok(())
    }

    /// kube-apiserver, and waits until it is ready.
    pub(crate) fn start_api(&mut self) -> Result<()> {
        let mut command = self.control.command(self.asset("kube-apiserver"))?;
        let file = |flag: &str, name: &str| format!("--{flag}={}", self.file(name).display());
        command.args([
            file("client-ca-file", "ca.crt"),
            file("tls-cert-file", "server.crt"),
            file("tls-private-key-file", "server.key"),
            file("service-account-key-file", "server.pub"),
            file("service-account-signing-key-file", "server.key"),
            file("cert-dir", "apiserver"),
        ]);
        command.args([
            "--etcd-servers=http://127.0.0.1:2379",
            "--advertise-address=10.99.0.1",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--enable-bootstrap-token-auth",
            "--disable-admission-plugins=ServiceAccount",
            "--allow-privileged=true",
        ]);
        self.api = Some(Running::start(with_us(&mut command), &self.file("kube-apiserver.log"))?);
        until("the API server is ready", Duration::from_mins(1), || {
            Ok(self.kubectl(&["get", "--raw", "/readyz"]).ok())
        })?;
        Ok(())
    }

    /// containerd, and waits until it serves.
    pub(crate) fn start_runtime(&mut self) -> Result<()> {
        let mut command = self.place.command("containerd")?;
        command.arg("--config").arg(self.file("containerd.toml"));
        self.runtime = Some(Running::start(&mut command, &self.file("containerd.log"))?);
        until("containerd serves", Duration::from_secs(30), || {
            let mut version = self.place.command("ctr")?;
            version.args(["--address", "/run/containerd/containerd.sock", "version"]);
            Ok(version.output()?.status.success().then_some(()))
        })
    }

    /// A containerd that reads its networks from `conf_dir` takes over.
    pub(crate) fn restart_runtime(&mut self, conf_dir: &str) -> Result<()> {
        self.read_networks_from(conf_dir)?;
        self.runtime.take().context("it runs")?.stop()?;
        self.start_runtime()
    }

    /// Restarts containerd with CRI disabled.
    pub(crate) fn restart_runtime_without_cri(&mut self) -> Result<()> {
        let file = self.file("containerd.toml");
        let config = fs::read_to_string(&file).context("read containerd's configuration")?;
        pki::write(&file, &format!("disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n{config}"))?;
        self.runtime.take().context("it runs")?.stop()?;
        self.start_runtime()
    }

    /// Takes the namespaces of pods away, and leaves the files to which they were bound: as after a reboot.
    pub(crate) fn forget_namespaces(&self) -> Result<()> {
        let mut command = self.place.command("sh")?;
        run(command.args(["-ec", "for name in /run/netns/cni-*; do umount \"$name\"; done"])).map(|_| ())
    }

    /// A plugin of our own.
    pub(crate) fn install_plugin(&self, name: &str, content: &[u8]) -> Result<()> {
        // Put into place whole: one that runs cannot be written to, and half of one must not run.
        let (path, new) = (self.place.path("/opt/cni/bin").join(name), self.place.path("/opt/cni/new"));
        fs::write(&new, content).context("write the plugin")?;
        fs::set_permissions(&new, Permissions::from_mode(0o755)).context("make the plugin executable")?;
        fs::rename(new, path).context("put the plugin into place")
    }

    /// ovsdb-server with an empty database, ovs-vswitchd, and a bridge whose datapath is in userspace.
    pub(crate) fn start_open_vswitch(&mut self) -> Result<()> {
        let dir = self.place.path(SWITCH);
        fs::create_dir_all(&dir)?;
        let mut create = self.place.command("ovsdb-tool")?;
        run(create.args(["create", DATABASE, "/usr/share/openvswitch/vswitch.ovsschema"]))?;
        let mut command = self.switch_command("ovsdb-server")?;
        command.args([DATABASE, &format!("--remote=punix:{SWITCH}/db.sock")]);
        self.database = Some(Running::start(&mut command, &self.file("ovsdb-server.log"))?);
        until("the database serves", Duration::from_secs(10), || Ok(self.vsctl("--no-wait init").ok()))?;
        self.start_switch()?;
        self.vsctl("add-br br-int -- set bridge br-int datapath_type=netdev")
    }

    /// ovs-vswitchd.
    pub(crate) fn start_switch(&mut self) -> Result<()> {
        let command = &mut self.switch_command("ovs-vswitchd")?;
        self.switch = Some(Running::start(command, &self.file("ovs-vswitchd.log"))?);
        Ok(())
    }

    /// `ovs-vsctl WORDS`
    fn vsctl(&self, words: &str) -> Result<()> {
        let mut command = self.switch_command("ovs-vsctl")?;
        run(command.arg("--timeout=10").args(words.split_whitespace())).map(|_| ())
    }

    fn switch_command(&self, program: &str) -> Result<Command> {
        let mut command = self.place.command(program)?;
        command.envs(["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR"].map(|name| (name, SWITCH)));
        Ok(command)
    }

    /// kube-apiserver on the node itself, with an option that it does not have.
    pub(crate) fn broken_api_server(&self) -> Result<ExitStatus> {
        let mut command = self.place.command(self.asset("kube-apiserver"))?;
        let output = command.arg("--no-such-option").output().context("run kube-apiserver on the node")?;
        Ok(output.status)
    }

    /// A program on the node of which nothing counts but its name and that it lasts.
    pub(crate) fn start_lasting(&mut self, name: &str) -> Result<()> {
        let mut command = self.renamed("/bin/sleep", name)?;
        let log = self.file(&format!("{name}-on-the-node.log"));
        self.lasting.push(Running::start(command.arg("infinity"), &log)?);
        Ok(())
    }

    /// Gives the runtime its one image.
    pub(crate) fn import_image(&self) -> Result<()> {
        let archive = image::archive(self.dir.path())?;
        self.images(&["import", &archive.display().to_string()])
    }

    /// `ctr images ARGS`
    pub(crate) fn images(&self, args: &[&str]) -> Result<()> {
        let mut command = self.place.command("ctr")?;
        command.args(["--address", "/run/containerd/containerd.sock", "-n", "k8s.io", "images"]);
        run(command.args(args)).map(|_| ())
    }

    /// The kubelet.
    pub(crate) fn start_kubelet(&mut self) -> Result<()> {
        self.start_kubelet_with(&[])
    }

    /// The kubelet with further flags.
    pub(crate) fn start_kubelet_with(&mut self, flags: &[&str]) -> Result<()> {
        let mut command = self.place.command(self.asset("kubelet"))?;
        command.args([
            "--config=/var/lib/kubelet/config.yaml",
            "--kubeconfig=/etc/kubernetes/kubelet.conf",
            "--node-ip=10.99.0.2",
            &format!("--hostname-override={NODE}"),
        ]);
        command.args(self.dialect.kubelet_flags()).args(flags);
        self.kubelet = Some(Running::start(&mut command, &self.file("kubelet.log"))?);
        Ok(())
    }

    /// Another kubelet takes over, with the files as they are now.
    pub(crate) fn restart_kubelet(&mut self) -> Result<()> {
        self.kubelet.take().context("it runs")?.stop()?;
        self.start_kubelet()
    }

    /// The controllers that make pods of DaemonSets.
    pub(crate) fn start_controllers(&self) -> Result<Running> {
        let mut command = self.control.command(self.asset("kube-controller-manager"))?;
        command.arg("--kubeconfig").arg(self.file("admin.conf"));
        command.args(["--controllers=daemonset,garbagecollector", "--leader-elect=false"]);
        Running::start(with_us(&mut command), &self.file("kube-controller-manager.log"))
    }

    /// The account of the manifests, put where a pod finds its own.
    pub(crate) fn install_account(&self) -> Result<()> {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy");
        for manifest in ["rbac.yaml", "rbac-reads.yaml"] {
            self.kubectl(&["apply", "-f", &deploy.join(manifest).display().to_string()])?;
        }
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let file = pki::write(&self.file("token-request.json"), &request.to_string())?;
        let url = "/api/v1/namespaces/kube-system/serviceaccounts/netready/token";
        let answer: Value = serde_json::from_str(&self.kubectl(&[
            "create",
            "--raw",
            url,
            "-f",
            &file.display().to_string(),
        ])?)?;
        let token = answer["status"]["token"].as_str().context("the API server gives a token")?;
        pki::write(&self.place.path(ACCOUNT).join("token"), token)?;
        pki::write(&self.place.path(ACCOUNT).join("ca.crt"), &self.authority.certificate)?;
        Ok(())
    }

    /// Whether it is there.
    pub(crate) fn has_account(&self) -> bool {
        self.place.path(ACCOUNT).exists()
    }

    /// Takes it away.
    pub(crate) fn remove_account(&self) -> Result<()> {
        fs::remove_dir_all(self.place.path(ACCOUNT)).context("remove the account")
    }

    /// kubectl as the administrator, on the control plane's host; with what it prints.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Result<String> {
        let mut command = self.control.command("kubectl")?;
        command.arg("--kubeconfig").arg(self.file("admin.conf")).arg("--request-timeout=5s").args(args);
        run(&mut command)
    }

    /// Applies a manifest.
    pub(crate) fn apply(&self, manifest: &Value) -> Result<()> {
        let file = pki::write(&self.file("manifest.json"), &manifest.to_string())?;
        self.kubectl(&["apply", "-f", &file.display().to_string()]).map(|_| ())
    }

    /// The Node object.
    pub(crate) fn node(&self) -> Result<Value> {
        let text = self.kubectl(&["get", "node", NODE, "-o", "json"])?;
        serde_json::from_str(&text).context("read the Node object")
    }

    /// The last lines of a program's log.
    pub(crate) fn log(&self, name: &str) -> String {
        let text = fs::read_to_string(self.file(&format!("{name}.log"))).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The kubelet before what it talks to; containers end with the place.
        drop(self.kubelet.take());
        self.lasting.clear();
        drop(self.runtime.take());
        drop(self.switch.take());
        drop(self.database.take());
        drop(self.api.take());
        drop(self.etcd.take());
    }
}

/// Where containerd reads its networks unless told otherwise.
pub(crate) const CONF_DIR: &str = "/etc/cni/net.d";

/// The kubelet's, as it keeps it.
pub(crate) const CERTIFICATE: &str = "/var/lib/kubelet/pki/kubelet-client-current.pem";

/// A configuration list.
pub(crate) fn network(subnet: &str) -> Value {
    json!({"cniVersion": "0.4.0", "name": "pods", "plugins": [
        {"type": "bridge", "bridge": "cni0", "isGateway": true,
         "ipam": {"type": "host-local", "ranges": [[{"subnet": subnet}]]}},
        {"type": "portmap", "capabilities": {"portMappings": true}},
    ]})
}

/// Where Open vSwitch has its files.
const SWITCH: &str = "/run/openvswitch";
const DATABASE: &str = "/run/openvswitch/conf.db";

/// Where a pod finds its account.
const ACCOUNT: &str = "/run/secrets/kubernetes.io/serviceaccount";
