import type { ImageContext } from '../image.js';
import { changeHeader } from './header-change.js';

/**
 * Rewrites the backing reference; durable on return. Errors: invalid (name too long), unsupported (no room in the header
 * cluster).
 */
export async function changeBacking(
  context: ImageContext,
  filename: string | undefined,
  format: string | undefined,
): Promise<void> {
  context.assertMayWrite();
  await context.beginChanges();
  await changeHeader(context, { backing: { filename, format } });
}
