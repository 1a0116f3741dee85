import { given } from '../base/given.js';
import type { JsonObject } from '../schema/types.js';
import type { HmpArguments, HmpSyntax } from './hmp-arguments.js';
import type { Parts } from './parts.js';

/** One command of the human monitor, for engines with the parts E. */
export interface HmpCommand<E> {
  name: string;
  alias?: string;
  parameters: string;
  help: string;
  syntax: HmpSyntax;
  run(engine: E, given: HmpArguments): Promise<string> | string;
}

/** Does what the QMP command does, and prints nothing. */
export async function runQmp(
  { registry }: Parts<'registry'>,
  name: string,
  args: { [key: string]: JsonObject[string] | undefined } = {},
): Promise<string> {
  await registry.complete(name, given(args) as JsonObject);
  return '';
}
