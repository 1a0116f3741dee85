/**
 * What later QEMUs (8.0 to 10.0) say of disks, exports and jobs and livedisk does not, and why; written as in
 * introspection-differences.ts.
 */
export const LATER_LESS: ReadonlyArray<readonly [reason: string, place: string, names: string]> = [
  ['no such driver (also 7.2 may be built with them)', 'blockdev-add.driver', '=io_uring =nvme-io_uring =virtio-blk-vfio-pci =virtio-blk-vhost-user =virtio-blk-vhost-vdpa'], // prettier-ignore
  ['an image is opened as active, and given away by blockdev-set-active', 'blockdev-add', '.active'],
  ['an image of another process has no exports', 'block-export-add', '.allow-inactive'],
  ['answers are those of 7.2', 'query-block()[].inserted', '.active'],
  ['answers are those of 7.2', 'query-block()[].inserted.image.format-specific.type', '=file'],
  ['no such cipher or hash', 'blockdev-create.options(luks).cipher-alg', '=sm4'],
  ['no such cipher or hash', 'blockdev-create.options(luks).ivgen-hash-alg', '=sm3'],
  ['no zoned devices', 'query-blockstats()[].stats', '.zone_append_bytes .zone_append_operations .zone_append_total_time_ns .zone_append_merged .failed_zone_append_operations .invalid_zone_append_operations .zone_append_latency_histogram'], // prettier-ignore
  ['no zoned devices', 'query-blockstats()[].stats.timed_stats[]', '.min_zone_append_latency_ns .max_zone_append_latency_ns .avg_zone_append_latency_ns .avg_zone_append_queue_depth'], // prettier-ignore
  ['no zoned devices', 'block-latency-histogram-set', '.boundaries-zap'],
];

/** Types that later QEMUs have cut up. */
const OTHERWISE: readonly string[] = [
  ...['dirty-flag', 'actual-size', 'backing-filename', 'full-backing-filename'],
  ...['backing-filename-format', 'snapshots', 'backing-image', 'format-specific'],
].map((name) => `more: query-block()[].inserted.image.format-specific(vmdk).data.extents[].${name}`);

/** A job's type is the tag of its answer from 8.2 on. */
const JOBS = ['query-block-jobs()[]: tag undefined is "type"', 'query-block-jobs()[].type: builtin is enum'];

export const LATER: readonly string[] = [
  ...LATER_LESS.flatMap(([, place, names]) => names.split(' ').map((name) => `less: ${place}${name}`)),
  ...OTHERWISE,
  ...JOBS,
];

/** What some had between 7.2 and the newest. */
export const PASSED: readonly string[] = ['(luks)', '(qcow2).encrypt(luks)'].map(
  (where) => `less: blockdev-create.options${where}.detached-header`,
);

/** Of what livedisk has past 7.2, what no recorded QEMU has: its own, or of 10.1. */
export const NOT_RECORDED: readonly string[] = [
  'blockdev-add(blkdebug).x-delay',
  'blockdev-backup.on-cbw-error',
  'blockdev-mirror.target-is-zero',
  'drive-backup.on-cbw-error',
  // A member of one case of the answer there.
  'query-block-jobs()[].actively-synced',
].map((path) => `more: ${path}`);
