import { BlockError } from '../base/error.js';
import type { Node } from './node.js';

/** What is written down of a node must hold no secret. Errors: invalid, which names the option. `where`: "the state". */
export function assertNoPlainSecret({ name, driver, options }: Node, where: string): void {
  const found = driver.secretIn?.(options);
  if (found === undefined) return;
  throw new BlockError('invalid', `Node '${name}' has ${found.what}, which would stand in ${where}`, {
    hint: `Give it as a secret: ${found.instead}.`,
  });
}
