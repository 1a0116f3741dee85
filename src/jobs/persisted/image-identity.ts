import type { Node } from '../../block/node.js';
import { lastingIdentity } from '../../host/file-identity.js';
import type { Host } from '../../host/host.js';
import { isJsonObject, type JsonValue } from '../../schema/types.js';

/** Which file an image is. */
export interface ImageIdentity {
  path: string;
  /** See lastingIdentity(). */
  identity: string;
}

/** Of a node's storage; undefined where there is no file. */
export async function identityOf(host: Host, node: Node): Promise<ImageIdentity | undefined> {
  const path = node.storage.filename;
  if (path === '') return undefined;
  const stat = await host.files.stat(path).catch(() => undefined);
  return stat && { path, identity: lastingIdentity(stat) };
}

/** Whether a journal's word is one. */
export function isImageIdentity(value: JsonValue | undefined): boolean {
  return isJsonObject(value) && typeof value['path'] === 'string' && typeof value['identity'] === 'string';
}
