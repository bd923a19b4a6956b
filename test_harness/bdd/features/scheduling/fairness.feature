@own-service
Feature: Fair shares
  Everybody's work moves, in proportion to the weights that the operator has set, and what counts is
  tokens, not tasks. Nobody is starved, and nobody has to know about the others.

  Background:
    Given pool "shared" with 1 engine of 1 slot and
      """
      queue: { capacity: 512, full_policy: reject }
      admission:
        fairness: { kind: wfq, tenants: [ { id: acme, weight: 3 }, { id: zeta, weight: 1 } ] }
      """

  @ORCH-3075 @OC-CORE-1004
  Scenario: Two tenants with equal backlogs get tokens by their weights
    Given all slots of "shared" are taken
    When acme submits 80 batch tasks "acme" of 20 tokens to "shared"
    And zeta submits 80 batch tasks "zeta" of 20 tokens to "shared"
    And the engines of "shared" go on
    Then in "shared" the tokens of "acme" and "zeta" were 3 to 1 while both waited
    And all of "acme" end well
    And all of "zeta" end well

  @ORCH-3075
  Scenario: A tenant gains nothing by cutting its work into smaller tasks
    Given all slots of "shared" are taken
    When acme submits 120 batch tasks "acme" of 30 tokens to "shared"
    And zeta submits 60 batch tasks "zeta" of 60 tokens to "shared"
    And the engines of "shared" go on
    Then in "shared" the tokens of "acme" and "zeta" were 3 to 1 while both waited

  @ORCH-3075 @OC-CORE-1004
  Scenario: Interactive work overtakes a backlog of batch work, which still moves
    Given all slots of "shared" are taken
    When acme submits 40 batch tasks "bulk" of 20 tokens to "shared"
    And acme submits 80 interactive tasks "chat" of 20 tokens to "shared"
    And the engines of "shared" go on
    Then in "shared" the tokens of "chat" and "bulk" were 8 to 1 while both waited
    And in "shared" at most 8 tasks ran in a row while "bulk" waited
    And all of "bulk" end well

  @OC-CORE-1004
  Scenario: A newcomer does not stand behind somebody else's flood
    Given all slots of "shared" are taken
    When acme submits 60 interactive tasks "flood" of 10 tokens to "shared"
    And zeta submits 2 interactive tasks "guest" of 10 tokens to "shared"
    And the engines of "shared" go on
    Then in "shared" at most 3 tasks ran in a row while "guest" waited
    And all of "flood" end well
