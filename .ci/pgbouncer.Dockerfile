FROM eventmesh-test/postgres:17
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends pgbouncer >/dev/null
EXPOSE 6432
