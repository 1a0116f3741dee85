import { humanBytes } from '../../view/progress-meter.js';

/** One layer of a disk's chain, for drawing. */
export interface Layer {
  filename: string;
  nodeName: string;
  allocatedBytes: number;
}

/** `[A] <-- [B] <-- [C]`, base first, as the document draws it, with files and sizes below and the guest on top. */
export function drawChain(layers: readonly Layer[]): string {
  const columns = layers.map(({ filename, nodeName, allocatedBytes }) => {
    const lines = [`[${nodeName}]`, filename, humanBytes(allocatedBytes)];
    const width = Math.max(...lines.map((text) => text.length));
    return lines.map((text) => text.padEnd(width));
  });
  const line = (index: number, between: string): string =>
    `    ${columns.map((column) => column[index]).join(between)}`;
  return [`${line(0, ' <-- ')} <== guest`, line(1, '     ').trimEnd(), line(2, '     ').trimEnd()].join('\n');
}
