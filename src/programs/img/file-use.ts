import type { FileUse, ImageCheck, Json } from '../../block/driver.js';
import type { Node } from '../../block/node.js';
import { fileUseJson } from '../../monitor/file-use.js';
import type { FileFacts } from '../../view/file-use.js';

/** How an image's file is used, and how many of its clusters leaked, which takes a check. */
export interface FoundUse {
  use: FileUse;
  leakedBytes: number;
}

/** Undefined: its format has nothing to tell of it. Errors: those of the check. */
export async function findFileUse({ instance }: Node, checked?: ImageCheck): Promise<FoundUse | undefined> {
  const use = await instance.fileUse?.();
  if (!use) return undefined;
  const check = checked ?? (await instance.check?.('none', () => undefined));
  return { use, leakedBytes: (check?.leaks ?? 0) * use.clusterBytes };
}

/** The answer of x-query-file-use, with what leaked. */
export function foundUseJson({ use, leakedBytes }: FoundUse): { [key: string]: Json } {
  return { ...fileUseJson(use), leaked: leakedBytes };
}

export function fileFacts({ use, leakedBytes }: FoundUse): FileFacts {
  return { ...use, leakedBytes, neededBytes: use.usedBytes - leakedBytes };
}
