import { Command, Empty, Loaded, Page, Pager, Select, TextField } from "../components/ui";
import api, { body } from "../lib/api";
import { count } from "../lib/format";
import { setParams, view } from "../lib/router";
import { useQuery } from "../lib/use-query";
import { ENQUEUE, ProjectTable } from "./overview";

const SORTS = [
  ["id", "Id"],
  ["queued", "Queued"],
  ["processing", "Running"],
  ["failed", "Failed"],
  ["tokens", "Tokens a minute"],
] as const;
type Sort = (typeof SORTS)[number][0];

export function ProjectsPage() {
  const { params } = view.value;
  const search = params.get("search") ?? "";
  const sort = (params.get("sort") ?? "queued") as Sort;
  const cursor = params.get("cursor") ?? undefined;
  const query = useQuery(`projects ${search} ${sort} ${cursor}`, (signal) =>
    body(api.GET("/api/projects", { params: { query: { search: search || undefined, sort, cursor } }, signal })),
  );
  return (
    <Page title="Projects">
      <div class="filters">
        <TextField
          label="Search"
          value={search}
          placeholder="a part of the id"
          onChange={(search) => setParams({ search, cursor: null })}
        />
        <Select
          label="Sort by"
          value={sort}
          options={SORTS.map(([value, label]) => [value, label])}
          onChange={(sort) => setParams({ sort, cursor: null })}
        />
      </div>
      <Loaded query={query}>
        {({ projects, total, nextCursor }) =>
          projects.length === 0 ? (
            <Empty>
              {search ? (
                <p>No id of a project contains “{search}”.</p>
              ) : (
                <>
                  <p>There is no project yet. The first job makes one:</p>
                  <Command>{ENQUEUE}</Command>
                </>
              )}
            </Empty>
          ) : (
            <>
              <ProjectTable caption={count(total, "project")} projects={projects} />
              <Pager next={nextCursor} params={(cursor) => setParams({ cursor })} />
            </>
          )
        }
      </Loaded>
    </Page>
  );
}
