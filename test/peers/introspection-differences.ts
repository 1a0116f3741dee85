import { LATER_LESS } from './introspection-later.js';

/**
 * Where livedisk's schema is not QEMU 7.2's, and why. A type that is used in several places is named at the first.
 * Members are written .NAME, values =NAME.
 */
const LESS: ReadonlyArray<readonly [reason: string, ...places: ReadonlyArray<readonly [string, string]>]> = [
  [
    'no such driver',
    [
      'blockdev-add.driver',
      '=blkreplay ' +
        '=ftp =ftps =gluster =host_cdrom =iscsi =nfs ' +
        '=nvme =qcow =rbd =replication ' +
        '=vvfat',
    ],
    ['query-block()[].inserted.image.format-specific.type', '=luks =rbd'],
    [
      'blockdev-create.options(luks).cipher-alg',
      '=des =3des =cast5-128 =serpent-128 =serpent-192 =serpent-256 =twofish-128 =twofish-192 =twofish-256',
    ],
  ],
  [
    'an option that is refused by name',
    ['blockdev-add(file)', '.pr-manager .aio-max-batch .drop-cache .x-check-cache-dropped'],
    ['blockdev-add(host_device)', '.pr-manager .aio-max-batch .drop-cache .x-check-cache-dropped'],
    ['block-export-add(vhost-user-blk).addr.type', '=vsock'],
    ['block-export-add(vhost-user-blk).addr(inet)', '.numeric .to .ipv4 .ipv6 .keep-alive .mptcp'],
    ['block-export-add(vhost-user-blk).addr(unix)', '.tight'],
    ['blockdev-add(qcow2)', '.l2-cache-entry-size .cache-clean-interval'],
    ['blockdev-add(http)', '.proxy-username .proxy-password-secret'],
    ['blockdev-add(https)', '.proxy-username .proxy-password-secret'],
    ['blockdev-create.options(file)', '.extent-size-hint'],
    ['blockdev-create.options(vmdk)', '.extents'],
    ['migrate', '.blk .inc'],
  ],
  [
    'character devices without a use for a monitor',
    [
      'chardev-add.backend.type',
      '=serial =parallel =udp =msmouse =wctablet =braille =testdev =console =spicevmc =spiceport ' +
        '=qemu-vdagent =dbus =vc',
    ],
    ['chardev-add.backend(file).data', '.in'],
    ['chardev-add.backend(socket).data', '.telnet .tn3270 .websocket'],
  ],
  [
    'exports are on the NBD server or over vhost-user, of the main loop, without metadata contexts of their own',
    ['block-export-add.type', '=fuse =vduse-blk'],
  ],
  [
    'an answer about what no node or device has',
    ['query-block()[].inserted.image', '.encrypted'],
    ['query-block()[].inserted.image.format-specific(qcow2).data', '.encrypt'],
  ],
  [
    'what does not happen here: there is no machine around the disks, and no such job',
    ['query-status().status', '=debug =internal-error =suspended =watchdog =guest-panicked =colo'],
    [
      'RESET.reason',
      '=none =host-ui =guest-shutdown =guest-reset =guest-panic =subsystem-reset =snapshot-load',
    ],
    [
      'query-cpu-definitions()[]',
      '.name .migration-safe .static .unavailable-features .typename .alias-of .deprecated',
    ],
    ['query-cpus-fast()[]', '.props'],
    [
      'query-cpus-fast()[].target',
      '=aarch64 =alpha =arm =avr =cris =hppa =i386 =loongarch64 =m68k =microblaze =microblazeel =mips =mips64 =mips64el =mipsel =nios2 =or1k =ppc =ppc64 =riscv32 =riscv64 =rx =s390x =sh4 =sh4eb =sparc =sparc64 =tricore =xtensa =xtensaeb',
    ],
    ['query-display-options()', '.full-screen .window-close .show-cursor .gl'],
    ['query-display-options().type', '=default =gtk =sdl =egl-headless =curses =spice-app =dbus'],
    ['query-hotpluggable-cpus()[]', '.type .vcpus-count .props .qom-path'],
    ['query-memory-devices()[]', '.type'],
    [
      'query-migrate()',
      '.disk .vfio .xbzrle-cache .cpu-throttle-percentage .postcopy-blocktime .postcopy-vcpu-blocktime .compression',
    ],
    ['query-migrate().socket-address[].type', '=vsock'],
    ['query-migrate().socket-address[](inet)', '.numeric .to .keep-alive .mptcp'],
    ['query-migrate().socket-address[](unix)', '.abstract .tight'],
    ['query-mice()[]', '.name .index .current .absolute'],
    ['query-pci()[]', '.bus .devices'],
    ['query-pr-managers()[]', '.id .connected'],
    ['query-tpm()[]', '.id .model .options'],
    ['query-vnc()', '.host .family .service .auth .clients'],
    ['query-vnc-servers()[]', '.id .server .clients .auth .vencrypt .display'],
  ],
  [
    'no such type of object',
    ['object-add(memory-backend-file)', '.prealloc-context'],
    ['object-add(memory-backend-memfd)', '.prealloc-context'],
    ['object-add(memory-backend-ram)', '.prealloc-context'],
    [
      'object-add.qom-type',
      '=authz-pam =can-bus =can-host-socketcan =colo-compare =cryptodev-backend =cryptodev-backend-builtin =cryptodev-backend-lkcf =cryptodev-vhost-user =dbus-vmstate =filter-buffer =filter-dump =filter-mirror =filter-redirector =filter-replay =filter-rewriter =input-barrier =input-linux =memory-backend-epc =pef-guest =pr-manager-helper =qtest =rng-egd =secret_keyring =sev-guest =thread-context =s390-pv-guest =x-remote-object =x-vfio-user-server',
    ],
  ],
];

/** Of a union of which there is one kind, or none. */
const UNTAGGED = [
  ['query-cpus-fast()[]', 'target'],
  ['query-display-options()', 'type'],
  ['query-memory-devices()[]', 'type'],
] as const;

/** livedisk's own delays for tests, what came with QEMU 8.2 to 10, and a name that QEMU's manual has and its schema has not. */
const MORE = [
  'X_MOVE',
  'BLOCK_IO_ERROR.qom-path',
  'chardev-add.backend(socket).data.reconnect-ms',
  'object-add.qom-type=authz-list-file',
  'blockdev-add(blkdebug).x-delay',
  'block-job-change',
  'block-stream.backing-mask-protocol',
  'block-commit.backing-mask-protocol',
  'blockdev-mirror.target-is-zero',
  'blockdev-backup.discard-source',
  'blockdev-backup.on-cbw-error',
  'drive-backup.discard-source',
  'drive-backup.on-cbw-error',
  'blockdev-backup.x-perf.min-cluster-size',
  'blockdev-add(copy-before-write).min-cluster-size',
  'blockdev-add(qcow2).discard-no-unref',
  'blockdev-add(luks).header',
  'blockdev-create.options(luks).header',
  'query-block-jobs()[].actively-synced',
  'blockdev-set-active',
  'migrate.channels',
  'migrate-incoming.channels',
  'nbd-server-start.handshake-max-seconds',
  'x-move-claim',
  'x-move-release',
  'x-query-move',
];

/** Required in 7.2, and not where there is another way to say it. */
const OPTIONAL = ['migrate.uri', 'migrate-incoming.uri', 'blockdev-create.options(luks).file'];

/** Commands of qemu-system-x86_64 7.2 that are not here. */
const MISSING_COMMANDS: ReadonlyArray<readonly [reason: string, names: string]> = [
  ["negotiation is the session's", 'qmp_capabilities'],
  [
    'no processor, memory or firmware',
    'cancel-vcpu-dirty-limit calc-dirty-rate dump-guest-memory dumpdtb inject-nmi memsave pmemsave ' +
      'query-acpi-ospm-status query-cpu-model-expansion query-dirty-rate query-dump ' +
      'query-dump-guest-memory-capability query-sev query-sev-attestation-report query-sev-capabilities ' +
      'query-sev-launch-measure query-sgx query-sgx-capabilities query-stats query-stats-schemas ' +
      'query-vcpu-dirty-limit query-vm-generation-id rtc-reset-reinjection set-numa-node ' +
      'set-vcpu-dirty-limit sev-inject-launch-secret watchdog-set-action x-exit-preconfig',
  ],
  [
    'no memory that is copied while it is used, no Xen',
    'client_migrate_info query-colo-status query-xen-replication-status ' +
      'x-colo-lost-heartbeat xen-colo-do-checkpoint xen-load-devices-state xen-save-devices-state ' +
      'xen-set-global-dirty-log xen-set-replication',
  ],
  [
    'no display, input or network',
    'add_client change-vnc-password display-reload display-update expire_password ' +
      'input-send-event netdev_add netdev_del query-rocker query-rocker-of-dpa-flows query-rocker-of-dpa-groups ' +
      'query-rocker-ports query-rx-filter query-spice screendump send-key set_link set_password',
  ],
  [
    "QEMU's own insides",
    'query-replay replay-break replay-delete-break replay-seek ' +
      'x-query-irq x-query-jit x-query-numa x-query-opcount x-query-profile x-query-ramblock x-query-rdma ' +
      'x-query-roms x-query-usb x-query-virtio x-query-virtio-queue-element x-query-virtio-queue-status ' +
      'x-query-virtio-status x-query-virtio-vhost-queue-status',
  ],
];

export const MISSING: readonly string[] = MISSING_COMMANDS.flatMap(([, names]) => names.split(' '));

function table(rows: ReadonlyArray<readonly [where: string, what: string]>): string {
  return ['| where | what |', '| --- | --- |', ...rows.map((row) => `| ${row.map(cell).join(' | ')} |`)].join(
    '\n',
  );
}

function cell(text: string): string {
  return text.replaceAll('|', '\\|');
}

function code(names: string): string {
  return names
    .split(' ')
    .map((name) => `\`${name}\``)
    .join(' ');
}

/** docs/QMP-DIFFERENCES.md. */
export function differencesText(): string {
  const less = LESS.map(
    ([reason, ...places]) =>
      `### Less: ${reason}\n\n${table(places.map(([place, names]) => [`\`${place}\``, code(names)]))}\n`,
  );
  const missing = MISSING_COMMANDS.map(([reason, names]) => `- ${reason}: ${code(names)}`);
  return `# Where query-qmp-schema is not QEMU's

Written by \`test/peers/introspection.test.ts\`, which compares livedisk's answer with QEMU 7.2's, command by command and
member by member, and fails when this list is not the whole of it. A type that is used in several places is named at the
first; \`.name\` is a member, \`=name\` a value, \`()\` what a command returns, \`[]\` an element, \`(tag)\` a case.

## Commands that are not here

${missing.join('\n')}

## Members and values

${less.join('\n')}
### Less than later QEMUs

What QEMU 8.0 to 10.0 say of disks, exports and jobs beyond that (\`test/peers/recorded-schemas.test.ts\`, from the replies that
libvirt's sources have). They also describe a vmdk's extents by a type of their own, and give \`query-block-jobs\` a case for
each type of job.

${table(LATER_LESS.map(([reason, place, names]) => [`\`${place}\``, `${code(names)}: ${reason}`]))}

### More

livedisk's own, or of a later QEMU (8.1 to 10.1): ${code(MORE.join(' '))}
`;
}

export const DIFFERENCES: readonly string[] = [
  ...LESS.flatMap(([, ...places]) =>
    places.flatMap(([place, names]) => names.split(' ').map((name) => `less: ${place}${name}`)),
  ),
  ...UNTAGGED.map(([place, tag]) => `${place}: tag undefined is "${tag}"`),
  ...MORE.map((path) => `more: ${path}`),
  ...OPTIONAL.map((path) => `${path} is optional for one of both`),
];
