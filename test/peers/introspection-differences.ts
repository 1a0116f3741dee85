/**
 * Where livedisk's schema is not QEMU 7.2's, and why. A type that is used in several places is named at the first.
 * Members are written .NAME, values =NAME.
 */
const LESS: ReadonlyArray<readonly [reason: string, ...places: ReadonlyArray<readonly [string, string]>]> = [
  [
    'no such driver',
    [
      'blockdev-add.driver',
      '=blklogwrites =blkreplay =blkverify =bochs =cloop =copy-before-write =dmg ' +
        '=snapshot-access =ftp =ftps =gluster =host_cdrom =http =https =iscsi =luks =nfs =null-aio ' +
        '=nvme =parallels =preallocate =qcow =qed =quorum =rbd =replication =ssh =vdi =vhdx =vmdk =vpc ' +
        '=vvfat',
    ],
    ['query-block()[].inserted.image.format-specific.type', '=vmdk =luks =rbd'],
    ['query-blockstats()[]', '.driver-specific'],
  ],
  [
    'an option that is refused by name',
    ['block-dirty-bitmap-add', '.persistent'],
    ['blockdev-add(file)', '.pr-manager .aio-max-batch .drop-cache .x-check-cache-dropped'],
    ['blockdev-add(host_device)', '.pr-manager .aio-max-batch .drop-cache .x-check-cache-dropped'],
    ['blockdev-add(nbd).server.type', '=vsock'],
    ['blockdev-add(nbd).server(inet)', '.numeric .to .ipv4 .ipv6 .keep-alive .mptcp'],
    ['blockdev-add(nbd).server(unix)', '.tight'],
    [
      'blockdev-add(qcow2)',
      '.lazy-refcounts .pass-discard-request .pass-discard-snapshot .pass-discard-other .overlap-check ' +
        '.l2-cache-entry-size .cache-clean-interval .encrypt .data-file',
    ],
    ['blockdev-backup', '.x-perf'],
    ['blockdev-create.options(file)', '.extent-size-hint'],
    ['blockdev-create.options(file).preallocation', '=metadata =falloc =full'],
    ['blockdev-create.options(qcow2)', '.data-file .encrypt'],
    ['blockdev-create.options(qcow2).compression-type', '=zstd'],
    ['drive-backup', '.x-perf'],
    ['human-monitor-command', '.cpu-index'],
    ['x-blockdev-amend.options(qcow2)', '.encrypt'],
  ],
  [
    'character devices without a use for a monitor, and logs of them',
    [
      'chardev-add.backend.type',
      '=serial =parallel =pipe =udp =mux =msmouse =wctablet =braille =testdev =console =spicevmc =spiceport ' +
        '=qemu-vdagent =dbus =vc',
    ],
    ['chardev-add.backend(file).data', '.logfile .logappend .in'],
    ['chardev-add.backend(socket).data', '.logfile .logappend .telnet .tn3270 .websocket'],
    ['chardev-add.backend(pty).data', '.logfile .logappend'],
    ['chardev-add.backend(null).data', '.logfile .logappend'],
    ['chardev-add.backend(stdio).data', '.logfile .logappend'],
    ['chardev-add.backend(ringbuf).data', '.logfile .logappend'],
  ],
  [
    'exports are on the NBD server, of the main loop, without metadata contexts of their own',
    ['block-export-add', '.fixed-iothread .iothread'],
    ['block-export-add.type', '=vhost-user-blk =fuse =vduse-blk'],
  ],
  [
    'an answer about what no node or device has',
    ['query-block()[].inserted.image', '.encrypted .compressed'],
    [
      'query-block()[].inserted.image.format-specific(qcow2).data',
      '.data-file .data-file-raw .encrypt .bitmaps',
    ],
    ['query-block()[].inserted.dirty-bitmaps[]', '.inconsistent'],
    ['query-blockstats()[].stats', '.idle_time_ns'],
  ],
  [
    'what does not happen here: there is no machine around the disks, and no such job',
    ['query-jobs()[].type', '=snapshot-load =snapshot-save =snapshot-delete'],
    [
      'query-status().status',
      '=debug =internal-error =finish-migrate =restore-vm =save-vm =suspended =watchdog =guest-panicked =colo',
    ],
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
    ['query-memdev()[]', '.id .size .merge .dump .prealloc .share .reserve .host-nodes .policy'],
    ['query-memory-devices()[]', '.type'],
    ['query-mice()[]', '.name .index .current .absolute'],
    ['query-pci()[]', '.bus .devices'],
    ['query-pr-managers()[]', '.id .connected'],
    ['query-tpm()[]', '.id .model .options'],
    ['query-vnc()', '.host .family .service .auth .clients'],
    ['query-vnc-servers()[]', '.id .server .clients .auth .vencrypt .display'],
  ],
  [
    'no such type of object',
    [
      'object-add.qom-type',
      '=authz-pam =can-bus =can-host-socketcan =colo-compare =cryptodev-backend =cryptodev-backend-builtin =cryptodev-backend-lkcf =cryptodev-vhost-user =dbus-vmstate =filter-buffer =filter-dump =filter-mirror =filter-redirector =filter-replay =filter-rewriter =input-barrier =input-linux =memory-backend-epc =memory-backend-file =memory-backend-memfd =memory-backend-ram =pef-guest =pr-manager-helper =qtest =rng-builtin =rng-egd =rng-random =secret_keyring =sev-guest =thread-context =s390-pv-guest =x-remote-object =x-vfio-user-server',
    ],
  ],
];

/** Of a union of which there is one kind, or none. */
const UNTAGGED = [
  ['query-cpus-fast()[]', 'target'],
  ['query-display-options()', 'type'],
  ['query-memory-devices()[]', 'type'],
] as const;

/** livedisk's own delays for tests, what came with QEMU 10, and a name that QEMU's manual has and its schema has not. */
const MORE = [
  'object-add.qom-type=authz-list-file',
  'blockdev-add(blkdebug).x-delay',
  'blockdev-set-active',
  'nbd-server-start.handshake-max-seconds',
];

export const DIFFERENCES: readonly string[] = [
  ...LESS.flatMap(([, ...places]) =>
    places.flatMap(([place, names]) => names.split(' ').map((name) => `less: ${place}${name}`)),
  ),
  ...UNTAGGED.map(([place, tag]) => `${place}: tag undefined is "${tag}"`),
  ...MORE.map((path) => `more: ${path}`),
];
