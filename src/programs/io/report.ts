import { fixed, formatBytes, formatSeconds } from './numbers.js';

export interface Transfer {
  /** "read", "wrote" or "discard". */
  verb: string;
  offset: number;
  lengthBytes: number;
  seconds: number;
}

/** The two lines that qemu-io ends a transfer with, or one of numbers for machines (-C). */
export function formatReport({ verb, offset, lengthBytes, seconds }: Transfer, machine: boolean): string {
  // A clock that has not moved would make rates infinite.
  const time = Math.max(seconds, 1e-9);
  const bytesPerSecond = lengthBytes / time;
  const operationsPerSecond = 1 / time;
  if (machine) {
    const rates = `${fixed(bytesPerSecond, 3)},${fixed(operationsPerSecond, 3)}`;
    return `${lengthBytes},1,${formatSeconds(seconds, true)},${rates}\n`;
  }
  const rates = `${formatBytes(bytesPerSecond)}/sec and ${fixed(operationsPerSecond, 4)} ops/sec`;
  return (
    `${verb} ${lengthBytes}/${lengthBytes} bytes at offset ${offset}\n` +
    `${formatBytes(lengthBytes)}, 1 ops; ${formatSeconds(seconds, false)} (${rates})\n`
  );
}

/** Sixteen bytes a line: where they are on the disk, in hexadecimal, and as text. */
export function formatDump(buffer: Uint8Array, offset: number): string {
  const lines: string[] = [];
  for (let at = 0; at < buffer.length; at += 16) {
    const bytes = [...buffer.subarray(at, at + 16)];
    const hex = bytes.map((byte) => `${byte.toString(16).padStart(2, '0')} `).join('');
    const text = bytes.map((byte) => (/[0-9A-Za-z]/.test(String.fromCharCode(byte)) ? byte : 0x2e));
    lines.push(`${(offset + at).toString(16).padStart(8, '0')}:  ${hex} ${String.fromCharCode(...text)}\n`);
  }
  return lines.join('');
}
