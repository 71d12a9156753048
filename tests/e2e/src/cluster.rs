//! A control plane on one host and a node on another, with the real programs, on one machine.

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
use crate::node_host::{LAYERS, NodeHost, kill_with_parent};
use crate::pki::{self, Authority, Identity};

/// Name of the node.
pub(crate) const NODE: &str = "node-1";
/// The address of the Service `kubernetes`.
pub(crate) const SERVICE: &str = "10.96.0.1";
/// Lifetime of certificates that are to be valid.
pub(crate) const VALID: time::Duration = time::Duration::days(1);

/// Set when the user interrupts the program.
pub(crate) static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Returns whether the user has interrupted the program.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// A running program; killed when dropped.
pub(crate) struct Running {
    child: Child,
}

impl Running {
    /// Starts it, with standard output and standard error appended to `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let output = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = spawn(command)?;
        Ok(Self { child })
    }

    /// Returns its process ID.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns whether it has exited by itself.
    pub(crate) fn has_exited(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: no memory is involved; the process is our child and was not waited for.
        unsafe { libc::kill(self.child.id().cast_signed(), signal) };
    }

    /// Returns its resident memory in MiB: the total, and the part without the pages of its executable, of which a debug build
    /// has many.
    pub(crate) fn memory_mib(&self) -> Option<[f64; 2]> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let mib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            Some(f64::from(line.split_whitespace().next()?.parse::<u32>().ok()?) / 1024.0)
        };
        Some([mib("VmRSS:")?, mib("RssAnon:")?])
    }

    /// Sends SIGTERM as an init system would, and waits. kube-apiserver drains the watches of its clients for a minute.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.signal(libc::SIGTERM);
        until("the program has exited", Duration::from_secs(90), || Ok(self.child.try_wait()?.map(|_| ())))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Calls `attempt` until it returns a value, an error, or `patience` is over.
pub(crate) fn until<T>(
    what: &str,
    patience: Duration,
    mut attempt: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        ensure!(!interrupted(), "interrupted");
        if let Some(value) = attempt()? {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("timed out after {} s waiting until {what}", patience.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Both hosts, and the programs that run on them.
pub(crate) struct Cluster {
    assets: PathBuf,
    pub(crate) dialect: Dialect,
    /// etcd on the control plane's host.
    pub(crate) etcd: Option<Running>,
    /// kube-apiserver on the control plane's host.
    pub(crate) api: Option<Running>,
    /// containerd.
    pub(crate) runtime: Option<Running>,
    /// The kubelet.
    pub(crate) kubelet: Option<Running>,
    /// Processes on the node that only have the name of a component.
    pub(crate) placeholders: Vec<Running>,
    /// ovsdb-server.
    ovsdb: Option<Running>,
    /// ovs-vswitchd.
    pub(crate) vswitchd: Option<Running>,
    /// Host of the node.
    pub(crate) host: NodeHost,
    /// Host of the control plane.
    pub(crate) control: Namespace,
    /// Authority that signs all certificates.
    pub(crate) authority: Authority,
    dir: TempDir,
}

impl Cluster {
    /// Creates both hosts and their files, and starts no program.
    pub(crate) fn new(assets: &Path) -> Result<Self> {
        let (netns, control) = Namespace::pair()?;
        let dir = TempDir::with_prefix("nrlab-e2e-").context("create a directory for the cluster")?;
        let host = NodeHost::new(netns, dir.path())?;
        let cluster = Self {
            assets: assets.to_owned(),
            dialect: Dialect::detect(&assets.join("kubelet"))?,
            etcd: None,
            api: None,
            runtime: None,
            kubelet: None,
            placeholders: Vec::new(),
            ovsdb: None,
            vswitchd: None,
            host,
            control,
            authority: Authority::new()?,
            dir,
        };
        cluster.write_files()?;
        Ok(cluster)
    }

    /// Returns the path of one of the test's own files, as opposed to those of the node.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn asset(&self, name: &str) -> PathBuf {
        self.assets.join(name)
    }

    fn write_files(&self) -> Result<()> {
        let server = self.authority.server(&["10.99.0.1", SERVICE, "127.0.0.1"])?;
        pki::write(&self.file("ca.crt"), &self.authority.certificate)?;
        pki::write(&self.file("server.crt"), &server.certificate)?;
        pki::write(&self.file("server.key"), &server.key)?;
        pki::write(&self.file("server.pub"), &server.public)?;
        let admin = self.authority.client("admin", "system:masters", VALID)?;
        let server = format!("https://{API}");
        pki::write(
            &self.file("admin.conf"),
            &pki::kubeconfig(&server, &self.authority, &pki::embedded_user(&admin)),
        )?;
        for dir in [CONF_DIR, "/opt/cni/bin", "/run/netns", "/var/lib/kubelet/pki", "/etc/kubernetes"] {
            fs::create_dir_all(self.host.path(dir))?;
        }
        install_plugins(&dialect::plugins(), &self.host.path("/opt/cni/bin"))?;
        self.install_kubelet_certificate(VALID)?;
        self.write_kubelet_kubeconfig(&self.authority)?;
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
            // The image cannot be pulled, so it must stay however full the disk is.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"imagefs.available": "0%", "nodefs.available": "0%", "memory.available": "0%"},
        });
        self.dialect.kubelet_config(&mut config);
        pki::write(&self.host.path("/var/lib/kubelet/config.yaml"), &config.to_string())?;
        self.write_runtime_config(CONF_DIR)
    }

    /// Sets the directory from which the next containerd reads network configurations.
    pub(crate) fn write_runtime_config(&self, conf_dir: &str) -> Result<()> {
        let config = self.dialect.containerd_config(Path::new(LAYERS), conf_dir);
        pki::write(&self.file("containerd.toml"), &config).map(|_| ())
    }

    /// Replaces the kubelet's certificate and key as the kubelet does.
    pub(crate) fn install_kubelet_certificate(&self, left: time::Duration) -> Result<()> {
        let user = format!("system:node:{NODE}");
        let identity = self.authority.client(&user, "system:nodes", left)?;
        self.replace_kubelet_certificate(&identity)
    }

    /// Writes the kubelet's kubeconfig, with the CA of `authority`.
    pub(crate) fn write_kubelet_kubeconfig(&self, authority: &Authority) -> Result<()> {
        let user = json!({"client-certificate": CERTIFICATE, "client-key": CERTIFICATE});
        let config = pki::kubeconfig(&format!("https://{API}"), authority, &user);
        pki::write(&self.host.path("/etc/kubernetes/kubelet.conf"), &config).map(|_| ())
    }

    /// Replaces the kubelet's certificate by one of an authority that the API server does not trust.
    pub(crate) fn install_untrusted_certificate(&self) -> Result<()> {
        let user = format!("system:node:{NODE}");
        self.replace_kubelet_certificate(&Authority::new()?.client(&user, "system:nodes", VALID)?)
    }

    fn replace_kubelet_certificate(&self, identity: &Identity) -> Result<()> {
        let current = self.host.path(CERTIFICATE);
        let new = pki::write(&current.with_extension("new"), &identity.pem_bundle())?;
        fs::rename(new, current).context("replace the kubelet's certificate")
    }

    /// Installs a working network: bridge and host-local on `subnet`.
    pub(crate) fn install_network(&self, subnet: &str) -> Result<()> {
        self.write_network("10-pods.conflist", &network(subnet).to_string())
    }

    /// Installs a file in the configuration directory as an installer does.
    pub(crate) fn write_network(&self, name: &str, content: &str) -> Result<()> {
        let dir = self.host.path(CONF_DIR);
        let new = pki::write(&dir.join(".new"), content)?;
        fs::rename(new, dir.join(name)).with_context(|| format!("install {name}"))
    }

    /// Removes a file from the configuration directory.
    pub(crate) fn remove_network(&self, name: &str) -> Result<()> {
        fs::remove_file(self.host.path(CONF_DIR).join(name)).context("remove the configuration")
    }

    /// Removes a file by a process with this name: an owner may remove its own file. The process exits a second later, because
    /// processes that have exited cannot be looked up.
    pub(crate) fn remove_network_as(&self, program: &str, name: &str) -> Result<()> {
        let mut perl = self.copy_as("/usr/bin/perl", program)?;
        run(perl.args(["-e", "unlink shift or die; sleep 1"]).arg(format!("{CONF_DIR}/{name}"))).map(|_| ())
    }

    /// Returns a command for a copy of a program on the node with another name, by which components are recognized.
    pub(crate) fn copy_as(&self, program: &str, name: &str) -> Result<Command> {
        let original = Path::new(program).file_name().context("the program has no file name")?.display();
        let path = format!("/opt/cni/{original}/{name}");
        fs::create_dir_all(self.host.path(&format!("/opt/cni/{original}")))?;
        fs::copy(program, self.host.path(&path)).with_context(|| format!("copy {program}"))?;
        self.host.command(path)
    }

    /// Starts etcd with an empty or an existing store.
    pub(crate) fn start_etcd(&mut self) -> Result<()> {
        let mut command = self.control.command("etcd")?;
        command.arg("--data-dir").arg(self.file("etcd")).args([
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--logger=zap",
        ]);
        self.etcd = Some(Running::start(kill_with_parent(&mut command), &self.file("etcd.log"))?);
        Ok(())
    }

    /// Starts kube-apiserver and waits until it is ready.
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
        self.api = Some(Running::start(kill_with_parent(&mut command), &self.file("kube-apiserver.log"))?);
        until("the API server is ready", Duration::from_mins(1), || {
            Ok(self.kubectl(&["get", "--raw", "/readyz"]).ok())
        })?;
        Ok(())
    }

    /// Starts containerd and waits until it serves.
    pub(crate) fn start_runtime(&mut self) -> Result<()> {
        let mut command = self.host.command("containerd")?;
        command.arg("--config").arg(self.file("containerd.toml"));
        self.runtime = Some(Running::start(&mut command, &self.file("containerd.log"))?);
        until("containerd serves", Duration::from_secs(30), || {
            let mut version = self.host.command("ctr")?;
            version.args(["--address", "/run/containerd/containerd.sock", "version"]);
            Ok(version.output()?.status.success().then_some(()))
        })
    }

    /// Restarts containerd, which then reads network configurations from `conf_dir`.
    pub(crate) fn restart_runtime(&mut self, conf_dir: &str) -> Result<()> {
        self.write_runtime_config(conf_dir)?;
        self.runtime.take().context("not running")?.stop()?;
        self.start_runtime()
    }

    /// Restarts containerd with CRI disabled.
    pub(crate) fn restart_runtime_without_cri(&mut self) -> Result<()> {
        let file = self.file("containerd.toml");
        let config = fs::read_to_string(&file).context("read containerd's configuration")?;
        pki::write(&file, &format!("disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n{config}"))?;
        self.runtime.take().context("not running")?.stop()?;
        self.start_runtime()
    }

    /// Unmounts the namespaces of pods and leaves the files to which they were bound, as after a reboot.
    pub(crate) fn unmount_pod_namespaces(&self) -> Result<()> {
        let mut command = self.host.command("sh")?;
        run(command.args(["-ec", "for name in /run/netns/cni-*; do umount \"$name\"; done"])).map(|_| ())
    }

    /// Installs a plugin.
    pub(crate) fn install_plugin(&self, name: &str, content: &[u8]) -> Result<()> {
        // Renamed, because a running plugin cannot be overwritten and half of one must not run.
        let (path, new) = (self.host.path("/opt/cni/bin").join(name), self.host.path("/opt/cni/new"));
        fs::write(&new, content).context("write the plugin")?;
        fs::set_permissions(&new, Permissions::from_mode(0o755)).context("make the plugin executable")?;
        fs::rename(new, path).context("install the plugin")
    }

    /// Starts ovsdb-server with an empty database, ovs-vswitchd, and a bridge with a userspace datapath.
    pub(crate) fn start_open_vswitch(&mut self) -> Result<()> {
        let dir = self.host.path(OVS_DIR);
        fs::create_dir_all(&dir)?;
        let mut create = self.host.command("ovsdb-tool")?;
        run(create.args(["create", OVS_DATABASE, "/usr/share/openvswitch/vswitch.ovsschema"]))?;
        let mut command = self.ovs_command("ovsdb-server")?;
        command.args([OVS_DATABASE, &format!("--remote=punix:{OVS_DIR}/db.sock")]);
        self.ovsdb = Some(Running::start(&mut command, &self.file("ovsdb-server.log"))?);
        until("the database serves", Duration::from_secs(10), || Ok(self.vsctl("--no-wait init").ok()))?;
        self.start_vswitchd()?;
        self.vsctl("add-br br-int -- set bridge br-int datapath_type=netdev")
    }

    /// Starts ovs-vswitchd.
    pub(crate) fn start_vswitchd(&mut self) -> Result<()> {
        let command = &mut self.ovs_command("ovs-vswitchd")?;
        self.vswitchd = Some(Running::start(command, &self.file("ovs-vswitchd.log"))?);
        Ok(())
    }

    /// Runs `ovs-vsctl WORDS`.
    fn vsctl(&self, words: &str) -> Result<()> {
        let mut command = self.ovs_command("ovs-vsctl")?;
        run(command.arg("--timeout=10").args(words.split_whitespace())).map(|_| ())
    }

    fn ovs_command(&self, program: &str) -> Result<Command> {
        let mut command = self.host.command(program)?;
        command.envs(["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR"].map(|name| (name, OVS_DIR)));
        Ok(command)
    }

    /// Runs kube-apiserver on the node with an unknown option, and returns its exit status.
    pub(crate) fn run_broken_api_server(&self) -> Result<ExitStatus> {
        let mut command = self.host.command(self.asset("kube-apiserver"))?;
        let output = command.arg("--no-such-option").output().context("run kube-apiserver on the node")?;
        Ok(output.status)
    }

    /// Starts a process on the node that only has the name of a component.
    pub(crate) fn start_placeholder(&mut self, name: &str) -> Result<()> {
        let mut command = self.copy_as("/bin/sleep", name)?;
        let log = self.file(&format!("{name}-on-the-node.log"));
        self.placeholders.push(Running::start(command.arg("infinity"), &log)?);
        Ok(())
    }

    /// Imports the image into the runtime.
    pub(crate) fn import_image(&self) -> Result<()> {
        let archive = image::archive(self.dir.path())?;
        self.images(&["import", &archive.display().to_string()])
    }

    /// Runs `ctr images ARGS`.
    pub(crate) fn images(&self, args: &[&str]) -> Result<()> {
        let mut command = self.host.command("ctr")?;
        command.args(["--address", "/run/containerd/containerd.sock", "-n", "k8s.io", "images"]);
        run(command.args(args)).map(|_| ())
    }

    /// Starts the kubelet.
    pub(crate) fn start_kubelet(&mut self) -> Result<()> {
        self.start_kubelet_with(&[])
    }

    /// Starts the kubelet with additional flags.
    pub(crate) fn start_kubelet_with(&mut self, flags: &[&str]) -> Result<()> {
        let mut command = self.host.command(self.asset("kubelet"))?;
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

    /// Restarts the kubelet, which then reads its files again.
    pub(crate) fn restart_kubelet(&mut self) -> Result<()> {
        self.kubelet.take().context("not running")?.stop()?;
        self.start_kubelet()
    }

    /// Starts the controllers that create the pods of DaemonSets.
    pub(crate) fn start_controllers(&self) -> Result<Running> {
        let mut command = self.control.command(self.asset("kube-controller-manager"))?;
        command.arg("--kubeconfig").arg(self.file("admin.conf"));
        command.args(["--controllers=daemonset,garbagecollector", "--leader-elect=false"]);
        Running::start(kill_with_parent(&mut command), &self.file("kube-controller-manager.log"))
    }

    /// Creates the service account of the manifests, with its token where a pod finds it.
    pub(crate) fn install_service_account(&self) -> Result<()> {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy");
        for manifest in ["rbac.yaml", "rbac-reads.yaml"] {
            self.kubectl(&["apply", "-f", &deploy.join(manifest).display().to_string()])?;
        }
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let file = pki::write(&self.file("token-request.json"), &request.to_string())?;
        let url = "/api/v1/namespaces/kube-system/serviceaccounts/netready/token";
        let response: Value = serde_json::from_str(&self.kubectl(&[
            "create",
            "--raw",
            url,
            "-f",
            &file.display().to_string(),
        ])?)?;
        let token = response["status"]["token"].as_str().context("the API server returned no token")?;
        pki::write(&self.host.path(SERVICE_ACCOUNT_DIR).join("token"), token)?;
        pki::write(&self.host.path(SERVICE_ACCOUNT_DIR).join("ca.crt"), &self.authority.certificate)?;
        Ok(())
    }

    /// Returns whether the service account is installed.
    pub(crate) fn has_service_account(&self) -> bool {
        self.host.path(SERVICE_ACCOUNT_DIR).exists()
    }

    /// Removes the files of the service account.
    pub(crate) fn remove_service_account(&self) -> Result<()> {
        fs::remove_dir_all(self.host.path(SERVICE_ACCOUNT_DIR)).context("remove the service account")
    }

    /// Runs kubectl as the administrator on the control plane's host, and returns its output.
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

    /// Returns the Node object.
    pub(crate) fn node_object(&self) -> Result<Value> {
        let text = self.kubectl(&["get", "node", NODE, "-o", "json"])?;
        serde_json::from_str(&text).context("read the Node object")
    }

    /// Returns the last 25 lines of a program's log.
    pub(crate) fn log(&self, name: &str) -> String {
        let text = fs::read_to_string(self.file(&format!("{name}.log"))).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The kubelet first, then the servers that it uses; containers are killed with the node's host.
        drop(self.kubelet.take());
        self.placeholders.clear();
        drop(self.runtime.take());
        drop(self.vswitchd.take());
        drop(self.ovsdb.take());
        drop(self.api.take());
        drop(self.etcd.take());
    }
}

/// The directory from which containerd reads network configurations by default.
pub(crate) const CONF_DIR: &str = "/etc/cni/net.d";

/// The kubelet's certificate and key, at the path where the kubelet stores them.
pub(crate) const CERTIFICATE: &str = "/var/lib/kubelet/pki/kubelet-client-current.pem";

/// Returns a configuration list.
pub(crate) fn network(subnet: &str) -> Value {
    json!({"cniVersion": "0.4.0", "name": "pods", "plugins": [
        {"type": "bridge", "bridge": "cni0", "isGateway": true,
         "ipam": {"type": "host-local", "ranges": [[{"subnet": subnet}]]}},
        {"type": "portmap", "capabilities": {"portMappings": true}},
    ]})
}

/// Directory of Open vSwitch.
const OVS_DIR: &str = "/run/openvswitch";
const OVS_DATABASE: &str = "/run/openvswitch/conf.db";

/// Directory in which a pod finds its service account.
const SERVICE_ACCOUNT_DIR: &str = "/run/secrets/kubernetes.io/serviceaccount";
