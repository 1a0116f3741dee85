import type { NodeOptions } from './driver.js';

/** Members of node options by type; undefined when absent or of another type (the schema has checked users'). */
export function stringOption(options: NodeOptions, key: string): string | undefined {
  const value = options[key];
  return typeof value === 'string' ? value : undefined;
}

export function booleanOption(options: NodeOptions, key: string): boolean | undefined {
  const value = options[key];
  return typeof value === 'boolean' ? value : undefined;
}

export function numberOption(options: NodeOptions, key: string): number | undefined {
  const value = options[key];
  return typeof value === 'number' ? value : undefined;
}
