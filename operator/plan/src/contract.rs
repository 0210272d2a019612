//! What the manifests pass to the programs they start, and where those meet: names, flags, sockets, directories.
//!
//! The one place for it. A flag that changes in `agent/src/process/args.rs` or in a CSI program changes here, and
//! nowhere else in the operator.
//!
//! The pods:
//!
//! | pod | containers |
//! |---|---|
//! | storage agent, one for each ordinal | `agent` (roles storage and node), `csi-node` |
//! | node plugin, on nodes without a storage agent | `agent` (role node), `csi-node` |
//! | holder, on every node | `holder` |
//! | CSI controller | `csi-controller`, and the stock `provisioner`, `attacher`, `resizer` |
//! | managed etcd | `etcd` |
//!
//! `agent` is a container of its own beside `csi-node`, so that a CSI program that is restarted takes no device with it.

/// The CSI driver's name.
pub const DRIVER: &str = "csi.torus.storage";
/// Parameter of a StorageClass and attribute of a volume: the filesystem, as the provisioner spells it.
pub const PARAMETER_FS_TYPE: &str = "csi.storage.k8s.io/fstype";
/// Parameter of a StorageClass: copies.
pub const PARAMETER_REPLICAS: &str = "replicas";
/// Parameter of a StorageClass: copies without which nothing is acknowledged.
pub const PARAMETER_MIN_REPLICAS: &str = "minReplicas";

/// The agent.
pub const PROGRAM_AGENT: &str = "torus-agent";
/// The CSI services: `torus-csi node …` and `torus-csi controller …`.
pub const PROGRAM_CSI: &str = "torus-csi";
/// What keeps devices alive while an agent is replaced.
pub const PROGRAM_HOLDER: &str = "torus-holder";
/// Managed etcd's program, in the image of the cluster.
pub const PROGRAM_ETCD: &str = "etcd";

/// Flag of the agent, beside those that `torus-agent --help` lists: what it does, of `storage` and `node`, with a comma between.
pub const FLAG_ROLE: &str = "--role";
/// Flag of the agent: a file that holds its failure domain.
pub const FLAG_DOMAIN_FILE: &str = "--domain-file";
/// Flag of the agent in role node: the name by which Kubernetes knows the node; the `host` of the volumes' holder, by which a dead
/// node's volumes are found.
pub const FLAG_NODE_NAME: &str = "--node-name";
/// Flag of the agent in role node: the socket of its node service; of `torus-csi node`: where to find it.
pub const FLAG_NODE_SOCKET: &str = "--node-socket";
/// Flag of the agent in role node: what is attached on this host is recorded here.
pub const FLAG_ATTACHED_DIR: &str = "--attached-dir";
/// Flag of the agent in role node: the kubelet's directory, outside of which it mounts nothing.
pub const FLAG_KUBELET_DIR: &str = "--kubelet-dir";
/// Flag of the agent in role node: put the FlexVolume driver here.
pub const FLAG_FLEX_VOLUME_DIR: &str = "--flexvolume-dir";
/// Flag of the holder: serve agents on this socket; of the agent in role node: where to find it.
pub const FLAG_HOLDER_SOCKET: &str = "--holder-socket";
/// Flag of `torus-csi`: serve CSI on this socket.
pub const FLAG_CSI_SOCKET: &str = "--csi-socket";
/// Flag of `torus-csi node`: where the kubelet looks for plugins' sockets.
pub const FLAG_REGISTRATION_DIR: &str = "--registration-dir";
/// Flag of `torus-csi node`: where the kubelet finds the CSI socket.
pub const FLAG_KUBELET_CSI_SOCKET: &str = "--kubelet-csi-socket";

/// The directory of everything Torus keeps on a host.
pub const HOST_DIR: &str = "/var/lib/torus";
/// Where the agent finds its data directory.
pub const DATA_DIR: &str = "/var/lib/torus/data";
/// What is attached on this host.
pub const ATTACHED_DIR: &str = "/var/lib/torus/attached";
/// Sockets that the containers of one pod, and the FlexVolume driver of the host, share.
pub const RUN_DIR: &str = "/run/torus";
/// The node service.
pub const NODE_SOCKET: &str = "/run/torus/node.sock";
/// The holder.
pub const HOLDER_SOCKET: &str = "/run/torus/holder.sock";
/// The CSI controller's socket, shared with its sidecars.
pub const CONTROLLER_SOCKET: &str = "/csi/csi.sock";
/// Where the ConfigMap with [`CONFIG_FILE`] is mounted.
pub const CONFIG_DIR: &str = "/etc/torus";
/// The agent's settings.
pub const CONFIG_FILE: &str = "agent.yaml";
/// Where the ConfigMap of failure domains is mounted: a file for each node.
pub const DOMAINS_DIR: &str = "/etc/torus-domains";
/// Where the secret for etcd is mounted.
pub const ETCD_SECRET_DIR: &str = "/etc/torus-etcd";
/// Keys of that secret.
pub const SECRET_CA: &str = "ca.crt";
/// See [`SECRET_CA`].
pub const SECRET_CERT: &str = "tls.crt";
/// See [`SECRET_CA`].
pub const SECRET_KEY: &str = "tls.key";
/// See [`SECRET_CA`].
pub const SECRET_USER: &str = "username";
/// See [`SECRET_CA`].
pub const SECRET_PASSWORD: &str = "password";

/// Service accounts: the chart makes them, with what they may do, so that the operator needs no right to give rights.
pub const ACCOUNT_AGENT: &str = "torus-agent";
/// See [`ACCOUNT_AGENT`].
pub const ACCOUNT_CSI: &str = "torus-csi-controller";
/// See [`ACCOUNT_AGENT`].
pub const ACCOUNT_ETCD: &str = "torus-etcd";

/// Marks everything that the operator makes.
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Its value.
pub const MANAGED_BY: &str = "torus-operator";
/// Which part of Torus an object belongs to.
pub const LABEL_COMPONENT: &str = "app.kubernetes.io/component";
/// Which TorusCluster an object belongs to.
pub const LABEL_CLUSTER: &str = "torus.storage/cluster";
/// Which TorusVolume an object belongs to, by uid.
pub const LABEL_VOLUME: &str = "torus.storage/volume";
/// A label of nodes that have a storage agent: the node plugin stays away from them.
pub const LABEL_NODE: &str = "torus.storage/storage-agent";
/// A label of nodes, by their kubelets: the id of the cluster whose CSI driver they have. A kubelet takes no driver of another one.
pub const LABEL_TOPOLOGY: &str = "csi.torus.storage/cluster";
/// What was applied: tells a field that was taken out of the plan from one that somebody else put in.
pub const ANNOTATION_APPLIED: &str = "torus.storage/applied";
/// Of a template: what its configuration is, so that a change of it is a new revision.
pub const ANNOTATION_CONFIG: &str = "torus.storage/config";
/// Holds a TorusCluster until what is not owned by it is gone.
pub const FINALIZER_CLUSTER: &str = "torus.storage/cluster";
/// Holds a TorusVolume until its volume is gone, or let go.
pub const FINALIZER_VOLUME: &str = "torus.storage/volume";
/// The taint that tells Kubernetes that a node is down for certain.
pub const TAINT_OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// Its value, where the operator set it: one that a person set is left alone.
pub const TAINT_VALUE: &str = "torus-fenced";
/// The host that holds an epoch which the operator raised.
pub const FENCER: &str = "torus-operator";
/// What its holder says there, before the name of the dead node.
pub const FENCED_FROM: &str = "fenced: ";
/// The field manager of server-side apply.
pub const FIELD_MANAGER: &str = "torus-operator";
