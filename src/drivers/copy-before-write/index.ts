import { BlockError } from '../../base/error.js';
import type { DriverContext, DriverDescription } from '../../block/driver.js';
import type { DirtyBitmap } from '../../block/dirty-bitmap.js';
import { COPY_BEFORE_WRITE_OPTIONS } from '../../schema/blockdev-options.js';
import { copyClusterBytes } from './cluster.js';
import { copyBeforeWritePermissions } from './job-filter.js';
import { CopyBeforeWriteNode } from './node.js';

/** A filter that copies what its disk holds to a target before it changes. */
export const copyBeforeWriteDriver: DriverDescription<typeof COPY_BEFORE_WRITE_OPTIONS> = {
  name: 'copy-before-write',
  kind: 'filter',
  options: COPY_BEFORE_WRITE_OPTIONS,
  isNamedAsChild: true,

  async open(context, settings) {
    const timeoutSeconds = settings['cbw-timeout'];
    const clusterBytes = copyClusterBytes(
      context.child('target').compression.clusterBytes,
      settings['min-cluster-size'],
    );
    const node = new CopyBeforeWriteNode(
      { file: () => context.child('file'), target: () => context.child('target') },
      {
        clusterBytes,
        // It was looked at when the point in time began.
        bitmap: context.memory ? undefined : settings.bitmap && bitmapOf(context, settings.bitmap),
        breaks: settings['on-cbw-error'] === 'break-snapshot' ? 'snapshot' : 'guest-write',
        memory: context.memory,
        timeout: timeoutSeconds > 0 ? { clock: context.host.clock, ms: 1000 * timeoutSeconds } : undefined,
      },
    );
    context.dirtyBitmaps.push(...node.copyBitmaps);
    return node;
  },

  childPermissions: copyBeforeWritePermissions,
};

/** Errors: not-found; invalid for one of a node of another size. */
function bitmapOf(context: DriverContext, { node, name }: { node: string; name: string }): DirtyBitmap {
  const bitmap = context.dirtyBitmap(node, name);
  const { lengthBytes } = context.child('file');
  if (bitmap.sizeBytes === lengthBytes) return bitmap;
  const sizes = `destination size is ${lengthBytes}, source size is ${bitmap.sizeBytes}`;
  const why = `Bitmaps are of different sizes (${sizes}) and can't be merged`;
  throw new BlockError(
    'invalid',
    `Cannot create block-copy-state: Failed to merge bitmap '${name}' to internal copy-bitmap: ${why}`,
  );
}
