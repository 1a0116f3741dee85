import { BlockError } from '../base/error.js';
import type { FileUse } from '../block/driver.js';
import { findDevice } from '../block/find-node.js';
import type { CommandResult } from '../schema/commands.js';
import type { Parts } from './parts.js';

export function registerFileUse(engine: Parts<'graph' | 'devices' | 'command'>): void {
  engine.command('x-query-file-use', async ({ node: id }) => {
    const node = (engine.devices.get(id)?.backend.node ?? findDevice(engine.graph, id)).skipFilters();
    const { instance, label, driver } = node;
    if (instance.fileUse) return fileUseJson(await instance.fileUse());
    throw new BlockError(
      'unsupported',
      `'${label}' is ${driver.name}, of whose file there is nothing to tell`,
    );
  });
}

/** As the command and the image tool answer. */
export function fileUseJson(use: FileUse): CommandResult<'x-query-file-use'> {
  return {
    length: use.lengthBytes,
    'cluster-size': use.clusterBytes,
    used: use.usedBytes,
    free: use.freeBytes,
    'data-clusters': use.dataClusters,
    'compressed-clusters': use.compressedClusters,
    extents: use.extents,
    'adjoining-clusters': use.adjoiningClusters,
    'scattered-clusters': use.scatteredClusters,
  };
}
