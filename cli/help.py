"""Help texts of several paragraphs. One string per paragraph: the terminal decides its width."""

from __future__ import annotations

APP = "\n\n".join(
    (
        "Lodestore: an object store on your own drives, spoken to by the S3 API.",
        "Start a store on six drives that survives the loss of any two:",
        "    lode serve --data ./data --drives d1 d2 d3 d4 d5 d6 --profile 4+2",
        "then wait for the line that begins with [bold]ready[/bold]: it names the address, and "
        "the file that holds the access key and the secret key.",
    )
)

EPILOG = (
    "Exit status: 0 done, 1 failed (or fsck found problems), 2 wrong option, file or folder. "
    "Documentation: README.md, docs/."
)

SERVE = "\n\n".join(
    (
        "Serve a store by the S3 API; make the store if the folder is new or empty.",
        "Once everything accepts requests, one line is printed on standard output:",
        "    ready s3=http://127.0.0.1:9000 credentials=/srv/lode/credentials.json",
        "Logs go to standard error. The first SIGTERM or Ctrl-C lets running requests end (30 s "
        "at most); a second one stops at once.",
        "[bold]Settings[/bold] come from the option, else from the environment (LODE_DATA, "
        "LODE_S3, LODE_TLS_CERT, ...), else from the file given by --config, else from the "
        "default.",
        "[bold]Credentials[/bold] come from LODE_ACCESS_KEY and LODE_SECRET_KEY, else from "
        "DATA/credentials.json, which is made on the first start and readable by its owner alone.",
        "[bold]Redundancy[/bold]: --data alone is a store on one drive, with checksums and "
        "without redundancy. With --drives, put each folder on a disk of its own.",
    )
)

DAV = "\n\n".join(
    (
        "Serve a store by WebDAV, as a network drive: every bucket is a folder.",
        "Works beside a running server on the same store. Once it accepts requests, one line is "
        "printed on standard output:",
        "    ready dav=http://127.0.0.1:9001 credentials=/srv/lode/credentials.json",
        "Log in with the access key as user name and the secret key as password. Settings and "
        "credentials come from where [bold]lode serve[/bold] has them.",
    )
)

NODE = "\n\n".join(
    (
        "Serve this machine's drives to the gateways of a cluster: one daemon per machine.",
        "    lode node --data /var/lib/lode-node --drives /mnt/d1 /mnt/d2 --listen :9100 --zone a",
        "Once it accepts requests, one line is printed on standard output:",
        "    ready node=http://0.0.0.0:9100 secret=/var/lib/lode-node/cluster.key",
        "It keeps nothing until a gateway has taken it in. Only then is a drive that is empty "
        "formatted. Anybody may ask it for /v1/health and /metrics; everything else "
        "takes the cluster's secret, which all its parts share: copy the file.",
        "SIGTERM lets running requests end (30 s at most); a second one stops at once.",
    )
)

MOUNT = "\n\n".join(
    (
        "Mount a bucket, what is below a prefix of it, or with [bold]/[/bold] every bucket.",
        "    lode mount --data ./data photos /mnt/photos",
        "Returns when the folder can be used; [bold]umount DIR[/bold] ends it. With --foreground "
        "it stays, and prints a line that begins with [bold]ready[/bold]. SIGTERM commits what is "
        "pending and unmounts.",
        "Works beside a running server on the same store. What the file system does and does not "
        "do is written down in docs/SEMANTICS.md.",
    )
)

CLUSTER = "Make a store out of the drives of several machines."

CLUSTER_INIT = "\n\n".join(
    (
        "Make a store that has no drives of its own: those of its members are its drives.",
        "    lode cluster init --data /srv/lode --profile 4+2",
        "Then, on each machine with drives, give it the secret and run [bold]lode node[/bold]; "
        "take it in with [bold]lode node add[/bold]; serve with [bold]lode serve[/bold]. Several "
        "gateways of one machine may serve one data folder.",
    )
)

CLUSTER_JOIN = "\n\n".join(
    (
        "Make the data folder of another gateway of a store whose metadata is on FoundationDB.",
        "    lode cluster join fdb:/etc/foundationdb/fdb.cluster --data /var/lib/lode",
        "The folder holds nothing that another gateway needs. lode serve, mount and all other "
        "commands then take --data alone.",
    )
)

CLUSTER_SECRET = "\n\n".join(
    (
        "Print the secret that all parts of the cluster share; make it if there is none yet.",
        "    lode cluster secret --data /srv/lode | ssh m1 'umask 077; cat > cluster.key'",
    )
)

NODE_ADD = "\n\n".join(
    (
        "Take a daemon in as a member of the cluster: its empty drives are formatted and get their "
        "share of what is stored.",
        "    lode node add 10.0.0.7:9100 --zone a",
        "Also: a member has moved to another address, has drives that are new, or is to be kept "
        "after all while it drains.",
    )
)

NODE_DRAIN = "\n\n".join(
    (
        "Move everything that a member has elsewhere; it goes on serving reads meanwhile.",
        "A drained member can be switched off, and forgotten with [bold]lode node remove[/bold].",
    )
)

NODE_REMOVE = "\n\n".join(
    (
        "Forget a member that holds nothing any more.",
        "With --force also one that is gone for good: what it held is made anew from the other "
        "fragments.",
    )
)

NODE_REPLACE = "\n\n".join(
    (
        "Put a new machine in the place of a member.",
        "    lode node replace m3 10.0.0.9:9100",
        "When the old one is gone, the new one takes over its name and its place, and is filled "
        "from the others. When the old one still answers, it is drained and the new one added.",
    )
)

NODE_LIST = "List the members of the cluster and their drives."

KEY = "Make, show and revoke access keys."

KEY_CREATE = "\n\n".join(
    (
        "Make an access key with a secret key of its own, and print both.",
        "    lode key create backup-of-lab --bucket backups",
        "    lode key create website --read-only --bucket photos --bucket films",
        "It works through S3 (access key and secret key) and WebDAV (user name and password), "
        "at every running gateway of the store within a second. With --bucket it reaches these "
        "buckets alone, makes them if they are not there, and sees no others.",
        "The root credentials may do everything and are not among the keys.",
    )
)

KEY_LIST = "List the access keys; never their secrets."

KEY_SHOW = "\n\n".join(
    (
        "Show one access key, or with --root the root credentials of the store.",
        "Where gateways share their metadata, all have the same root credentials; those that a "
        "gateway was given in its environment are its own, and not shown.",
    )
)

KEY_DELETE = (
    "Delete an access key. Every gateway refuses it within a second; what it made stays as it is."
)

KEY_DISABLE = "Refuse an access key until it is enabled again; within a second, everywhere."

KEY_ENABLE = "Let a disabled access key be used again."

META = "Move, back up and restore metadata."

META_COPY = "\n\n".join(
    (
        "Copy all metadata from SRC to DST, compare both, and let the data folder use DST.",
        "    lode meta copy embedded fdb:/etc/foundationdb/fdb.cluster --data /srv/lode",
        "SRC and DST are [bold]embedded[/bold] (in the data folder) or fdb:CLUSTERFILE. Servers "
        "and mounts may run: from the first moment the store is read-only for all of them, and "
        "reads go on. Restart them afterwards: they would go on reading from SRC, which stays "
        "read-only for good.",
        "A copy that was interrupted goes on when the command is given again; the store stays "
        "read-only until then, or until --abort gives the copy up.",
    )
)

META_BACKUP = "\n\n".join(
    (
        "Write one consistent state of the embedded metadata to FILE, also while the store runs.",
        "It belongs together with the drives for as long as the grace time: what is deleted later "
        "than the backup is collected after it. With FoundationDB use its own fdbbackup.",
    )
)

META_RESTORE = "\n\n".join(
    (
        "Put the backup FILE in the place of the store's metadata.",
        "Stop everything that uses the store first. What was there is kept beside it. Run "
        "[bold]lode fsck[/bold] afterwards.",
    )
)

SCRUB = "\n\n".join(
    (
        "Read and verify every block of every fragment now; what is damaged is repaired.",
        "    lode scrub --wait",
        "A running [bold]lode serve[/bold] does it, within --scrub-rate, beginning within seconds; "
        "[bold]lode status[/bold] shows how far it is. It takes the place of the scrub that comes "
        "by itself once in --scrub-period. With --wait the exit status is 1 if something was "
        "damaged or could not be read.",
    )
)

BUCKET = "Look after buckets."

BUCKET_QUOTA = "\n\n".join(
    (
        "Show what a bucket takes, or limit it.",
        "    lode bucket quota photos --bytes 10G --objects 100000",
        "Older versions count; delete markers and parts of uploads under way do not. Over the "
        "limit a write gets QuotaExceeded (403) through S3, EDQUOT through the mount, 507 through "
        "WebDAV; deleting, and replacing by less, are always possible. Works beside a running "
        "server, and holds from the next request on.",
    )
)

STATUS = "\n\n".join(
    (
        "Show members, drives, space, damage found and repaired, what waits for repair or "
        "collection, and running work with its rate and the time left.",
        "Fragments are counted by a census, a proof as of its time; never guessed. Works beside a "
        "running server. A drive is up, missing, failed, full, suspect (silent), down, lost (its "
        "fragments are made anew elsewhere), rebuilding, draining or removed.",
    )
)

FSCK = "\n\n".join(
    (
        "Prove that metadata and fragments agree, and print the counts.",
        "Changes nothing but what --repair-counters says: the server repairs. Works beside a "
        "running server. Exit status 0: clean; 1: problems, of which the first hundred are named.",
    )
)

GC = "\n\n".join(
    (
        "Collect garbage now: bytes that were deleted, or never owned, for longer than the grace "
        "time.",
        "The server does so by itself now and then. What a running request still reads is kept.",
    )
)
