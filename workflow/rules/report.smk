# stub until the report exists
